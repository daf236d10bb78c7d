"""The two that are compared: how each has the phone called, and its process."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
from livekit.api import LiveKitAPI
from livekit.protocol.agent_dispatch import RoomAgentDispatch
from livekit.protocol.room import CreateRoomRequest
from livekit.protocol.sip import CreateSIPParticipantRequest, SIPOutboundConfig

from dev.peers.bare_worker import AGENT_NAME

FROM, TO = "+15105550100", "+15105550123"


@dataclass(frozen=True, slots=True)
class Side:
    """``place``: have the phone called from a room of that name; returns the id of the call's
    record, empty where there is none. ``pid``: the worker's."""

    name: str
    pid: int
    place: Callable[[str], Awaitable[str]]


def ours(http: aiohttp.ClientSession, pid: int, phone: str) -> Side:
    """``http``: of the gateway; ``phone``: ``host:port``. Needs a default agent."""

    async def place(room: str) -> str:
        body = {
            "room_name": room,
            "participant_name": "Bench",
            "participant_identity": "phone",
            "from_phone_number": FROM,
            "to_phone_number": TO,
            "sip": {"outbound_address": phone},
        }
        async with http.post("/sip/call", json=body) as response:
            response.raise_for_status()
            return str((await response.json())["call_id"])

    return Side("Switchroom", pid, place)


def bare(livekit: LiveKitAPI, pid: int, phone: str) -> Side:
    """As LiveKit's example does: the dispatched agent dials the phone itself."""
    metadata = json.dumps({"address": phone, "to": TO, "from": FROM})

    async def place(room: str) -> str:
        agent = RoomAgentDispatch(agent_name=AGENT_NAME, metadata=metadata)
        await livekit.room.create_room(CreateRoomRequest(name=room, agents=[agent]))
        return ""

    return Side("bare livekit-agents worker", pid, place)


def dial(phone: str, room: str) -> CreateSIPParticipantRequest:
    """The phone, into a room, with no agent: for an echo over the same legs."""
    return CreateSIPParticipantRequest(
        trunk=SIPOutboundConfig(hostname=phone),
        sip_call_to=TO,
        sip_number=FROM,
        room_name=room,
        participant_identity="phone",
    )
