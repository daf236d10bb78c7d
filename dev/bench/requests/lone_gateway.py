"""A gateway without the rest of a stack, with authentication on."""

from __future__ import annotations

import json
from typing import Any

from core.settings import Settings
from dev.stack import StackOptions


def options(settings: Settings, secret: str, trunk: str, **values: Any) -> StackOptions:
    """``secret``: the bearer token of its one tenant; ``trunk``: ``host:port`` that all calls go
    to; ``values``: where LiveKit is, and further settings."""
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
