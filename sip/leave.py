"""Getting a phone's leg out of its room: ask it to leave, or remove it."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.room import PerformRpcRequest, RoomParticipantIdentity

from core.legs import LEAVE_METHOD
from sip._private import perform_rpc

_WITHIN_MS: Final = 1000


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
