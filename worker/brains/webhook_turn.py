"""Builds the body of a caller's turn for a webhook. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from livekit.agents.llm import ChatMessage

from core.jobs import CallBrief
from core.webhooks.payload import envelope, last, said
from worker.brains.webhook_client import EVENT
from worker.voice.keys import DIGITS
from worker.voice.transcript import spoken_text, turn_id_of


def voice_turn(
    brief: CallBrief, messages: Sequence[ChatMessage], *, context_limit: int, at: datetime
) -> tuple[str, str]:
    """Return the id of the request, and its body. ``messages`` are all of the call; the turn is the
    caller's last one. If a former agent of the call may have posted it already, the id is the same.
    """
    position = max(i for i, message in enumerate(messages) if message.role == "user")
    turn = messages[position]
    turn_id = turn_id_of(turn)
    recent = [
        said(
            text,
            "inbound" if message.role == "user" else "outbound",
            datetime.fromtimestamp(message.created_at, UTC),
        )
        for message in messages[:position]
        if message.role in ("user", "assistant") and (text := spoken_text(message))
    ]
    data = {
        "callId": brief.call_id,
        "numberId": brief.phone_number_id,
        "from": brief.from_number,
        "to": brief.to_number,
        "status": "in-progress",
        "transcript": spoken_text(turn),
        "confidence": turn.transcript_confidence,
        "direction": brief.direction,
    }
    if DIGITS in turn.extra:
        data["digits"] = turn.extra[DIGITS]
    if brief.recovered and any(known.id == turn_id for known in brief.recovered.turns):
        data["resent"] = True
    body = envelope(EVENT, at, brief.agent.id, data, last(recent, context_limit))
    return f"msg_{brief.call_id}_{turn_id}", body
