"""What LiveKit says of a participant whose own connection tells nothing, or not yet."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import aiohttp
from livekit import api

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 2.0
LOOK_S: Final = 0.25
# LiveKit, which answers, has a participant in the room as soon as it has taken the connection.
COMES_WITHIN_S: Final = 3.0


async def absent(client: api.LiveKitAPI, room: str, identity: str, call_id: str) -> bool:
    """Wait until LiveKit says that the participant of this call is not in the room.

    True when it was there before, False when it has not come in time. Whoever waits for it
    cancels the wait when it is in.
    """
    came, misses = False, 0
    while True:
        match await _has(client, room, identity, call_id):
            case True:
                came, misses = True, 0
            case False:
                misses += 1
        if misses and (came or misses * LOOK_S >= COMES_WITHIN_S):
            return came
        await asyncio.sleep(LOOK_S)


async def gone(client: api.LiveKitAPI, room: str, identity: str, sid: str) -> bool:
    """True when LiveKit says that the room has no such participant, or another by that name.

    False also when LiveKit cannot be asked: it may be on its way back, and so may the room.
    """
    found = await _find(client, room, identity)
    return found is not None and found.sid != sid


async def _has(client: api.LiveKitAPI, room: str, identity: str, call_id: str) -> bool | None:
    """Whether the participant there is this call's; None when LiveKit cannot be asked."""
    found = await _find(client, room, identity)
    return None if found is None else found.attributes.get("sip.callID") == call_id


async def _find(client: api.LiveKitAPI, room: str, identity: str) -> api.ParticipantInfo | None:
    """The participant, an empty one when there is none; None when LiveKit cannot be asked."""
    whom = api.RoomParticipantIdentity(room=room, identity=identity)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await client.room.get_participant(whom)
    except api.ServerError as error:
        return api.ParticipantInfo() if error.code == "not_found" else None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        log.info("cannot ask for a participant", extra={"room": room, "cause": str(error)})
        return None
