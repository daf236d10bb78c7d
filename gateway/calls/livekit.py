"""Requests to LiveKit's rooms: list participants, remove one, close a room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import (
    DeleteRoomRequest,
    ListParticipantsRequest,
    RoomParticipantIdentity,
)

from core.legs import Leg
from sip import leave

log = logging.getLogger(__name__)

LIVEKIT_ERRORS = (ServerError, aiohttp.ClientError, TimeoutError)

TRY_AGAIN_S: Final = (0.2, 1.0)


async def participants(livekit: LiveKitAPI, room_name: str) -> list[ParticipantInfo]:
    """Return all participants. Raises LIVEKIT_ERRORS; ``not_found`` if there is no such room."""
    listed = await livekit.room.list_participants(ListParticipantsRequest(room=room_name))
    return list(listed.participants)


async def present(livekit: LiveKitAPI, room_name: str) -> list[ParticipantInfo]:
    """Return all participants; none if there is no such room. Raises LIVEKIT_ERRORS."""
    try:
        return await participants(livekit, room_name)
    except ServerError as error:
        if error.code == "not_found":
            return []
        raise


async def participant(livekit: LiveKitAPI, room_name: str, identity: str) -> ParticipantInfo | None:
    """Return the participant; None: no such identity in the room, or no such room.

    Raises LIVEKIT_ERRORS.
    """
    return await leave.participant(livekit, _whom(room_name, identity))


def leg_of(participant: ParticipantInfo) -> Leg | None:
    """Return the participant's leg; None: not a leg of a call, whatever its attributes claim."""
    leg = Leg.read(participant.attributes)
    kinds = ParticipantInfo.Kind
    kind = kinds.STANDARD if leg is not None and leg.role == "visitor" else kinds.SIP
    return leg if participant.kind == kind else None


async def send_away(livekit: LiveKitAPI, room_name: str, identity: str) -> bool:
    """Make a participant leave the room, which hangs up a phone (sip.leave.send_away).

    False: no such identity in the room. Raises LIVEKIT_ERRORS.
    """
    return await leave.send_away(livekit, _whom(room_name, identity))


async def send_away_or_log(
    livekit: LiveKitAPI,
    room_name: str,
    identity: str,
    *,
    pauses_s: Sequence[float] = TRY_AGAIN_S,
) -> None:
    """Call ``send_away``, again after each of ``pauses_s`` if it fails, and log the last failure.

    The reconciler hangs up phones that remain.
    """
    for pause_s in (*pauses_s, None):
        try:
            await send_away(livekit, room_name, identity)
            return
        except LIVEKIT_ERRORS as error:
            problem = getattr(error, "code", type(error).__name__)
            if pause_s is None:
                log.error("could not hang up", extra={"room": room_name, "problem": problem})
            else:
                await asyncio.sleep(pause_s)


async def close_room(livekit: LiveKitAPI, room_name: str) -> None:
    """Delete the room. A failure is logged: the room has time-outs, and is mostly gone already."""
    try:
        await livekit.room.delete_room(DeleteRoomRequest(room=room_name))
    except LIVEKIT_ERRORS:
        log.info("room left to its own time-out", extra={"room": room_name})


async def tidy(livekit: LiveKitAPI, room_name: str) -> None:
    """Close a room with only agents in it; any other is left to its own time-out."""
    try:
        others = await participants(livekit, room_name)
    except LIVEKIT_ERRORS:
        return log.info("room left to its own time-out", extra={"room": room_name})
    if all(other.kind == ParticipantInfo.Kind.AGENT for other in others):
        await close_room(livekit, room_name)


def _whom(room_name: str, identity: str) -> RoomParticipantIdentity:
    return RoomParticipantIdentity(room=room_name, identity=identity)
