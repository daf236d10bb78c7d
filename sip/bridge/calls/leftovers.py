"""Legs that an earlier run of this bridge left in rooms.

A killed bridge does not leave its rooms, and LiveKit keeps its participants for some 20 s. In that
time the agent would talk to nobody, and the record would show a call in progress. A bridge that
starts has no calls yet, so every leg with its mark is orphaned: it is marked as lost and removed.
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

# The bridge's start waits for this; LiveKit removes the remaining legs after its 20 s.
DEADLINE_S: Final = 5.0


def mark_of(sip_address: str) -> str:
    """Return the mark that only the runs of the bridge at this address of this machine share."""
    return hashlib.sha256(f"{socket.gethostname()} {sip_address}".encode()).hexdigest()[:16]


async def remove(livekit: LiveKit) -> int:
    """Remove every leg with ``livekit.mark``, before any call is taken; return their number."""
    removed = 0
    client = livekit.client()
    try:
        async with asyncio.timeout(DEADLINE_S):
            listed = await client.room.list_rooms(api.ListRoomsRequest())
            for room in listed.rooms:
                with _gone_is_fine():
                    removed += await _clear(client, room.name, livekit.mark)
    except (api.ServerError, aiohttp.ClientError, TimeoutError, OSError) as error:
        # Also if LiveKit is still starting; then it has no rooms yet.
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
            # First, as removal alone means that our side hung up.
            await client.room.update_participant(lost)
            await remove_leg(client, whom)
        removed += 1
    return removed


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    """Ignore not_found: a room or leg that has ended since the listing must not stop the loop."""
    try:
        yield
    except api.ServerError as error:
        if error.code != "not_found":
            raise
