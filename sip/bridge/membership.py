"""Whether the room still has a participant whose connection to it broke."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import aiohttp
from livekit import api

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 2.0


async def gone(client: api.LiveKitAPI, room: str, identity: str, sid: str) -> bool:
    """True when LiveKit says that the room has no such participant, or another by that name.

    False also when LiveKit cannot be asked: it may be on its way back, and so may the room.
    """
    whom = api.RoomParticipantIdentity(room=room, identity=identity)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            found = await client.room.get_participant(whom)
    except api.ServerError as error:
        return error.code == "not_found"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        log.info("cannot ask for a participant", extra={"room": room, "cause": str(error)})
        return False
    return bool(found.sid != sid)
