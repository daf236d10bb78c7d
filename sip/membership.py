"""Asks LiveKit if a participant is in its room, as the leg's own connection may not tell."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import aiohttp
from livekit import api

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 2.0
LOOK_S: Final = 0.25
# While LiveKit responds, a participant is in the room as soon as its connection is accepted.
COMES_WITHIN_S: Final = 3.0


async def absent(
    client: api.LiveKitAPI,
    room: str,
    identity: str,
    call_id: str,
    *,
    look_s: float = LOOK_S,
    comes_within_s: float = COMES_WITHIN_S,
) -> bool:
    """Wait until LiveKit says that the participant of this call is not in the room.

    Return True if it was there before, False if it did not come in time. The caller cancels the
    wait once the participant has joined.
    """
    came, misses = False, 0
    while True:
        match await _has(client, room, identity, call_id):
            case True:
                came, misses = True, 0
            case False:
                misses += 1
        if misses and (came or misses * look_s >= comes_within_s):
            return came
        await asyncio.sleep(look_s)


async def gone(client: api.LiveKitAPI, room: str, identity: str, sid: str) -> bool:
    """Return True if the participant is not in the room, or another has taken its identity.

    Return False also if LiveKit cannot be asked: it may be restarting, and the room may come back.
    """
    found = await _find(client, room, identity)
    return found is not None and found.sid != sid


async def _has(client: api.LiveKitAPI, room: str, identity: str, call_id: str) -> bool | None:
    """Return True if the participant there is this call's; None if LiveKit cannot be asked."""
    found = await _find(client, room, identity)
    return None if found is None else found.attributes.get("sip.callID") == call_id


async def _find(client: api.LiveKitAPI, room: str, identity: str) -> api.ParticipantInfo | None:
    """Return the participant, or an empty one if absent; None if LiveKit cannot be asked."""
    whom = api.RoomParticipantIdentity(room=room, identity=identity)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await client.room.get_participant(whom)
    except api.ServerError as error:
        return api.ParticipantInfo() if error.code == "not_found" else None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        log.info("cannot ask for a participant", extra={"room": room, "cause": str(error)})
        return None
