"""The last steps of a call: hang up the far end, leave the room. Both bounded; neither raises."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from livekit import api, rtc

log = logging.getLogger(__name__)

_HANG_UP_WITHIN_S = 5.0
_LEAVE_WITHIN_S = 5.0


async def hang_up(livekit: api.LiveKitAPI, room_name: str, identity: str) -> None:
    """Remove a participant: of a phone, its leg is hung up. Tried twice."""
    target = api.RoomParticipantIdentity(room=room_name, identity=identity)
    for attempt in (1, 2):
        try:
            async with asyncio.timeout(_HANG_UP_WITHIN_S):
                await livekit.room.remove_participant(target)
            return
        except api.TwirpError as error:
            if error.code == api.TwirpErrorCode.NOT_FOUND:
                return
            failure = error.code
        except (TimeoutError, aiohttp.ClientError) as error:
            failure = type(error).__name__
        log.warning("could not hang up", extra={"attempt": attempt, "error": failure})


async def leave(room: rtc.Room) -> None:
    """Leave the room now; the job may last until its events are delivered."""
    try:
        async with asyncio.timeout(_LEAVE_WITHIN_S):
            await room.disconnect()
    except TimeoutError:
        log.warning("could not leave the room in time")


def only_phone(room: rtc.Room) -> str | None:
    """The identity of the phone in the room, if there is exactly one."""
    phones = [
        participant.identity
        for participant in room.remote_participants.values()
        if participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_SIP
    ]
    return phones[0] if len(phones) == 1 else None
