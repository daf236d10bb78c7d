"""The envelope of every webhook request, and the history that it contains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from core.models import Turn, rfc3339


def envelope(
    event: str,
    at: datetime,
    agent_id: str | None,
    data: dict[str, Any],
    recent: list[dict[str, Any]],
    **more: Any,
) -> str:
    """Return the body, exactly as it is signed and sent."""
    return json.dumps(
        {
            "event": event,
            "channel": "voice",
            "timestamp": rfc3339(at),
            "agentId": agent_id,
            "data": data,
            "conversationState": None,
            "recentHistory": recent,
            **more,
        },
        ensure_ascii=False,
    )


def said(content: str, direction: Literal["inbound", "outbound"], at: datetime) -> dict[str, Any]:
    """Return one entry of ``recentHistory``: inbound from the caller, outbound from the agent."""
    return {"content": content, "direction": direction, "channel": "voice", "at": rfc3339(at)}


def history(turns: Sequence[Turn], limit: int) -> list[dict[str, Any]]:
    """Return the last ``limit`` utterances of caller and agent."""
    entries = [
        entry
        for turn in turns
        for entry in (
            said(turn.transcript, "inbound", turn.created_at),
            said(turn.response, "outbound", turn.created_at),
        )
        if entry["content"]
    ]
    return last(entries, limit)


def last(entries: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Return the newest ``limit`` entries; ``limit`` may be 0."""
    return entries[-limit:] if limit else []
