"""A gateway without the rest of a stack, with authentication on."""

from __future__ import annotations

import json
from typing import Any

from core.settings import Settings
from dev.stack import StackOptions


def options(settings: Settings, secret: str, trunk: str, **values: Any) -> StackOptions:
    """Return the stack's options. ``secret``: the bearer token of the only tenant; ``trunk``:
    ``host:port`` for all calls; ``values``: LiveKit's URLs, and further settings."""
    return StackOptions(
        settings=settings,
        livekit=False,
        bridge=False,
        providers=False,
        worker=0,
        values={
            "auth_required": True,
            "auth_api_secrets_json": json.dumps([{"id": "bench", "secret": secret}]),
            "sip_outbound_address": trunk,
            **values,
        },
    )
