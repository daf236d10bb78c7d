"""Ids of calls, trunks and rules."""

from __future__ import annotations

import secrets
import string


def new_id(prefix: str) -> str:
    """Return a random id in LiveKit's form: ``SCL_`` and twelve letters or digits."""
    alphabet = string.ascii_letters + string.digits
    return f"{prefix}_{''.join(secrets.choice(alphabet) for _ in range(12))}"
