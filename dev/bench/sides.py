"""The two sides of a comparison: how each places a call, and its worker's process."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
from livekit.api import LiveKitAPI
from livekit.protocol.agent_dispatch import RoomAgentDispatch
from livekit.protocol.room import CreateRoomRequest
from livekit.protocol.sip import CreateSIPParticipantRequest, SIPOutboundConfig

from dev.bench.api import FROM, TO, post, sip_call
from dev.peers.bare_worker import AGENT_NAME


@dataclass(frozen=True, slots=True)
class Side:
    """``place``: call the phone from a room with that name, and return the id of the call's
    record (empty if there is none). ``pid``: the worker's process id."""

    name: str
    pid: int
    place: Callable[[str], Awaitable[str]]


def ours(http: aiohttp.ClientSession, pid: int, phone: str, **changes: str) -> Side:
    """Return our side. ``http``: a session for the gateway; ``phone``: ``host:port``;
    ``changes``: fields of the request; without ``agent`` there must be a default agent."""

    async def place(room: str) -> str:
        body = sip_call(room, sip={"outbound_address": phone}, **changes)
        return str((await post(http, "/sip/call", body))["call_id"])

    return Side("Switchroom", pid, place)


def bare(livekit: LiveKitAPI, pid: int, phone: str, caller: str = FROM) -> Side:
    """Return the bare side: as in LiveKit's example, the dispatched agent dials the phone."""
    metadata = json.dumps({"address": phone, "to": TO, "from": caller})

    async def place(room: str) -> str:
        agent = RoomAgentDispatch(agent_name=AGENT_NAME, metadata=metadata)
        await livekit.room.create_room(CreateRoomRequest(name=room, agents=[agent]))
        return ""

    return Side("bare livekit-agents worker", pid, place)


def dial(
    phone: str, room: str, *, called: str = TO, identity: str = "phone"
) -> CreateSIPParticipantRequest:
    """Return a request that dials the phone into a room, without an agent."""
    return CreateSIPParticipantRequest(
        trunk=SIPOutboundConfig(hostname=phone),
        sip_call_to=called,
        sip_number=FROM,
        room_name=room,
        participant_identity=identity,
        participant_name="Bench",
    )
