"""A request for POST /sip/call, and the record of its call."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from livekit.api import LiveKitAPI
from livekit.protocol.room import ListParticipantsRequest

from core.models import new_id
from dev.phone import Phone
from tests.conftest import ACME, Answered, Gateway

_numbers = itertools.count(1000)


def body(**changes: Any) -> dict[str, Any]:
    """Return a valid request without an agent, with its own room and number."""
    values: dict[str, Any] = {
        "room_name": new_id("room"),
        "participant_name": "John Doe",
        "participant_identity": "caller-456",
        "from_phone_number": "+15105550123",
        "to_phone_number": f"+1555123{next(_numbers)}",
        "agent": None,
    }
    return {**values, **changes}


async def ended(gateway: Gateway, call_id: str, **options: Any) -> dict[str, Any]:
    """Return the record, once the timeline has ended."""
    headers = options.get("headers", ACME)
    async with asyncio.timeout(30):
        async with gateway.session.get(f"/v1/calls/{call_id}/events", headers=headers) as events:
            assert events.status == 200
            text = await events.text()
    assert "event: ended" in text
    return dict((await gateway.get(f"/v1/calls/{call_id}", headers=headers)).body)


async def hang_up(gateway: Gateway, answer: Answered, phone: Phone) -> dict[str, Any]:
    call = await phone.next_call(5)
    await call.answered(5)
    await call.hangup()
    return await ended(gateway, answer.body["call_id"])


async def participants(livekit: LiveKitAPI, room: str) -> list[str]:
    listed = await livekit.room.list_participants(ListParticipantsRequest(room=room))
    return [participant.identity for participant in listed.participants]
