"""Ask a participant for a sign of life, by way of LiveKit."""

from __future__ import annotations

import asyncio

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.room import PerformRpcRequest, RoomParticipantIdentity

from sip._private import perform_rpc
from sip.leave import participant

# No participant has this method. The native part of LiveKit's SDKs says so itself, for as long as
# the process runs: neither the participant's code nor its event loop is needed.
_METHOD = "switchroom.Ping"


async def responds(
    livekit: LiveKitAPI, whom: RoomParticipantIdentity, within_s: float
) -> bool | None:
    """Return whether the participant's process responds; False also if it is not in the room.

    None: LiveKit does not tell. LiveKit itself notices a process that was killed or frozen, or a
    machine that is gone, only after some 20 s.
    """
    request = PerformRpcRequest(
        room=whom.room,
        destination_identity=whom.identity,
        method=_METHOD,
        payload="{}",
        response_timeout_ms=int(within_s * 1000),
    )
    try:
        async with asyncio.timeout(within_s + 1):
            if await participant(livekit, whom) is None:
                return False
            await perform_rpc(livekit, request)
    except ServerError as error:
        # As livekit-server (1.13) translates the codes of RPCs.
        return {"invalid_argument": True, "canceled": False}.get(error.code)
    except (aiohttp.ClientError, TimeoutError):
        return None
    return True
