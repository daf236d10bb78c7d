"""Getting a phone's leg out of its room: ask it to leave, or remove it."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import PerformRpcRequest, RoomParticipantIdentity

from core.legs import BRIDGE, LEAVE_METHOD
from sip._private import perform_rpc

_WITHIN_MS: Final = 1000
# A leg hangs up and waits up to a second for the agent's tracks to end. It takes two seconds more
# if its phone has not responded to the INVITE at all.
_LEAVES_WITHIN_S: Final = 4.0
_LOOK_EVERY_S: Final = 0.1


async def participant(livekit: LiveKitAPI, whom: RoomParticipantIdentity) -> ParticipantInfo | None:
    """Return the participant; None: no such identity in the room, or no such room.

    Raises ServerError, aiohttp.ClientError, TimeoutError.
    """
    try:
        return await livekit.room.get_participant(whom)
    except ServerError as error:
        if error.code == "not_found":
            return None
        raise


async def send_away(
    livekit: LiveKitAPI,
    whom: RoomParticipantIdentity,
    *,
    leaves_within_s: float = _LEAVES_WITHIN_S,
) -> bool:
    """Remove a participant from the room, which hangs up a phone, and wait until it has left.

    False: no such identity in the room. While a phone rings, its SIP service cancels or rejects
    the call. A leg of the embedded bridge is first asked to leave by itself, because removing it
    leaks memory. Raises ServerError, aiohttp.ClientError, TimeoutError.
    """
    found = await participant(livekit, whom)
    if found is None:
        return False
    # A leg that is still connecting cannot be asked.
    asked = BRIDGE in found.attributes and found.state == ParticipantInfo.State.ACTIVE
    if asked and await leaves_by_itself(livekit, whom):
        if await _left(livekit, whom, found.sid, leaves_within_s):
            return True
    try:
        await remove_leg(livekit, whom)
    except ServerError:
        # LiveKit answers "unavailable" for a participant that is already leaving.
        if await participant(livekit, whom):
            raise
    return True


async def leaves_by_itself(livekit: LiveKitAPI, whom: RoomParticipantIdentity) -> bool:
    """Ask a leg to leave; False if it does not agree (livekit-sip's never do): then remove it.

    LiveKit's SDK (1.1.21) never frees a leg that was removed, which costs the bridge half a
    megabyte and some threads.
    """
    request = PerformRpcRequest(
        room=whom.room,
        destination_identity=whom.identity,
        method=LEAVE_METHOD,
        payload="{}",
        response_timeout_ms=_WITHIN_MS,
    )
    try:
        async with asyncio.timeout(2 * _WITHIN_MS / 1000):
            await perform_rpc(livekit, request)
    except (ServerError, aiohttp.ClientError, TimeoutError):
        return False
    return True


async def remove_leg(livekit: LiveKitAPI, whom: RoomParticipantIdentity) -> None:
    """Remove a leg; one that has already left is fine.

    Raises ServerError, aiohttp.ClientError, TimeoutError.
    """
    try:
        await livekit.room.remove_participant(whom)
    except ServerError as error:
        if error.code != "not_found":
            raise


async def _left(
    livekit: LiveKitAPI, whom: RoomParticipantIdentity, sid: str, within_s: float
) -> bool:
    """Wait for a leg that agreed to leave; False: it was still there at the deadline."""
    clock = asyncio.get_running_loop()
    deadline = clock.time() + within_s
    while True:
        found = await participant(livekit, whom)
        if found is None or found.sid != sid:
            return True
        if clock.time() > deadline:
            return False
        await asyncio.sleep(_LOOK_EVERY_S)
