"""Requests about LiveKit's rooms."""

from __future__ import annotations

import logging

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import DeleteRoomRequest, ListParticipantsRequest

log = logging.getLogger(__name__)

LIVEKIT_ERRORS = (ServerError, aiohttp.ClientError, TimeoutError)


async def participants(livekit: LiveKitAPI, room_name: str) -> list[ParticipantInfo]:
    """Who is in the room. Raises LIVEKIT_ERRORS."""
    listed = await livekit.room.list_participants(ListParticipantsRequest(room=room_name))
    return list(listed.participants)


async def tidy(livekit: LiveKitAPI, room_name: str) -> None:
    """Delete a room that has nobody but agents in it; otherwise its own time-out will."""
    try:
        present = await participants(livekit, room_name)
        if all(other.kind == ParticipantInfo.Kind.AGENT for other in present):
            await livekit.room.delete_room(DeleteRoomRequest(room=room_name))
    except LIVEKIT_ERRORS:
        log.info("room left to its own time-out", extra={"room": room_name})
