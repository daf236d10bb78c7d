"""The last steps of a call: hang up the far end, leave the room. Both bounded; neither raises."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from livekit import api, rtc
from livekit.rtc.participant import UnpublishTrackError

from worker.link.backoff import Backoff

log = logging.getLogger(__name__)

# livekit-agents lets a job that ends have 20 s (worker.server), and leaving takes some of it.
HANG_UP_WITHIN_S = 12.0
_ATTEMPT_WITHIN_S = 3.0
_LEAVE_WITHIN_S = 5.0
_END_CALL = "lk.sip.EndCall"  # livekit-sip's, and the bridge's
_END_CALL_WITHIN_S = 2.0
_TRIP_WITHIN_S = 1.0
_SILENT_WITHIN_S = 1.0


async def end_call(room: rtc.Room, identity: str) -> bool:
    """Let a phone's leg hang up and leave by itself; False when it does not say that it will.

    One that is removed costs its SIP service more: LiveKit's SDK (1.1.21) never frees a room that
    the server ended, half a megabyte and some threads a call.
    """
    leg = room.remote_participants.get(identity)
    if leg is None or leg.kind != rtc.ParticipantKind.PARTICIPANT_KIND_SIP:
        return False
    try:
        # The SDK's own deadlines do not hold in a room that is being lost.
        async with asyncio.timeout(_END_CALL_WITHIN_S + _TRIP_WITHIN_S):
            await room.local_participant.perform_rpc(
                destination_identity=identity,
                method=_END_CALL,
                payload='{"headers":{}}',
                response_timeout=_END_CALL_WITHIN_S,
                max_round_trip_latency=_TRIP_WITHIN_S,
            )
    except (rtc.RpcError, TimeoutError) as error:
        log.info("the leg is removed instead", extra={"cause": str(error)})
        return False
    return True


async def hang_up(livekit: api.LiveKitAPI, room_name: str, identity: str) -> None:
    """Remove a participant: of a phone, its leg is hung up.

    Tried until LiveKit says that it is gone, for as long as the job may take; what is left after
    that is the gateway's reconciler's.
    """
    target = api.RoomParticipantIdentity(room=room_name, identity=identity)
    backoff = Backoff(longest=2.0)
    try:
        async with asyncio.timeout(HANG_UP_WITHIN_S):
            while (failure := await _remove(livekit, target)) is not None:
                log.warning("could not hang up", extra={"error": failure})
                await backoff.wait()
    except TimeoutError:
        log.error("a phone is left to the gateway", extra={"room": room_name})


async def _remove(livekit: api.LiveKitAPI, target: api.RoomParticipantIdentity) -> str | None:
    """None: it is gone. Otherwise what went wrong."""
    try:
        async with asyncio.timeout(_ATTEMPT_WITHIN_S):
            await livekit.room.remove_participant(target)
    except api.TwirpError as error:
        return None if error.code == api.TwirpErrorCode.NOT_FOUND else error.code
    except (TimeoutError, aiohttp.ClientError) as error:
        return type(error).__name__
    return None


async def fall_silent(room: rtc.Room) -> None:
    """Take our tracks out of the room: a leg that is over waits for this moment before it leaves.

    Closing the conversation takes a second; the room's audio is not needed for it.
    """
    try:
        async with asyncio.timeout(_SILENT_WITHIN_S):
            for sid in list(room.local_participant.track_publications):
                await room.local_participant.unpublish_track(sid)
    except (TimeoutError, UnpublishTrackError) as error:
        log.info("a track stays until we leave", extra={"cause": str(error)})


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
