"""The body of a webhook: the product's envelope, with the call as ``/v1`` shows it.

``data`` has all fields of ``GET /v1/calls/{id}`` except ``latency``, and also the names that the
product's events use: ``callId``, ``numberId``, ``from``, ``to``. ``transcripts`` holds the turns up
to the event.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from core.models import Turn
from core.webhooks.payload import envelope, history
from gateway.calls.views import CallView
from gateway.store.call_status import Call


def render(event: str, at: datetime, call: Call, turns: Sequence[Turn], context_limit: int) -> str:
    """Return the body of an event of ``call``, as it is signed and sent.

    Implements gateway.store.outbox.Render.
    """
    shown = CallView.of(call, turns[-1] if turns else None).wire()
    data = shown | {
        "callId": call.id,
        "numberId": call.phone_number_id,
        "from": call.from_number,
        "to": call.to_number,
        "transcripts": [turn.wire() for turn in turns],
    }
    return envelope(event, at, call.agent_id, data, history(turns, context_limit))


def render_test(at: datetime, agent_id: str | None, data: dict[str, Any]) -> str:
    """Return the body of a made-up ``agent.message``, marked ``"test": true``."""
    return envelope("agent.message", at, agent_id, data, [], test=True)
