"""The states of a caller's consent, which only ever move forward."""

from __future__ import annotations

from typing import Literal

ConsentStatus = Literal["not_asked", "asked", "granted", "refused"]
ConsentBy = Literal["key", "words", "silence"]
"""How the caller answered; silence refuses."""
