"""Legs that an earlier run of this bridge left in rooms.

A killed bridge takes leave of nobody, and LiveKit keeps its participants for some 20 s: so long an
agent would talk to nobody, and the record say that the call goes on. A bridge that starts anew has
no call yet, so whatever carries its mark is left over: it is said to be lost, and removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
from collections.abc import Iterator
from typing import Final

import aiohttp
from livekit import api

from core.legs import BRIDGE, LOST
from sip.leave import remove_leg
from sip.participant import LiveKit

log = logging.getLogger(__name__)

# Whoever starts a bridge waits for this; what is not done by then LiveKit does after its 20 s.
DEADLINE_S: Final = 5.0


def mark_of(sip_address: str) -> str:
    """The same for every run of the bridge that listens there on this machine, and no other's."""
    return hashlib.sha256(f"{socket.gethostname()} {sip_address}".encode()).hexdigest()[:16]


async def remove(livekit: LiveKit) -> int:
    """Remove every leg with ``livekit.mark``; how many. To be called before any call is taken."""
    removed = 0
    client = livekit.client()
    try:
        async with asyncio.timeout(DEADLINE_S):
            listed = await client.room.list_rooms(api.ListRoomsRequest())
            for room in listed.rooms:
                with _gone_is_fine():
                    removed += await _clear(client, room.name, livekit.mark)
    except (api.ServerError, aiohttp.ClientError, TimeoutError, OSError) as error:
        # Also a LiveKit that starts together with us, and has no rooms yet.
        log.info("cannot look for legs left over", extra={"problem": type(error).__name__})
    finally:
        await client.aclose()
    if removed:
        log.warning("legs of an earlier run removed", extra={"legs": removed})
    return removed


async def _clear(client: api.LiveKitAPI, room: str, mark: str) -> int:
    removed = 0
    listed = await client.room.list_participants(api.ListParticipantsRequest(room=room))
    for participant in listed.participants:
        if participant.attributes.get(BRIDGE) != mark:
            continue
        whom = api.RoomParticipantIdentity(room=room, identity=participant.identity)
        lost = api.UpdateParticipantRequest(
            room=room, identity=participant.identity, attributes={LOST: "true"}
        )
        with _gone_is_fine():
            # First: a leg that is just removed was hung up on, by our side.
            await client.room.update_participant(lost)
            await remove_leg(client, whom)
        removed += 1
    return removed


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    """A room or a leg that has ended by itself since it was listed keeps no other from its turn."""
    try:
        yield
    except api.ServerError as error:
        if error.code != "not_found":
            raise
