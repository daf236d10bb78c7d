"""The last steps in a room: hang up, stop sending, leave. All are bounded; none raises."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from livekit import api, rtc
from livekit.rtc.participant import UnpublishTrackError

from core.legs import BRIDGE, LEAVE_METHOD
from worker.link.backoff import FIRST_S, Backoff
from worker.room.far_end import CALL_STATUS

log = logging.getLogger(__name__)

# livekit-agents gives a job 20 s to end (worker.server), and leaving takes some of it.
HANG_UP_WITHIN_S = 12.0
_ATTEMPT_WITHIN_S = 3.0
_LEAVE_WITHIN_S = 5.0
_END_CALL = "lk.sip.EndCall"  # livekit-sip's, and the bridge's
_LEG_LEAVES_WITHIN_S = 2.0
_TRIP_WITHIN_S = 1.0
_SILENT_WITHIN_S = 1.0


async def send_away(
    room: rtc.Room,
    livekit: api.LiveKitAPI,
    identity: str,
    *,
    told: bool,
    within_s: float = HANG_UP_WITHIN_S,
    attempt_within_s: float = _ATTEMPT_WITHIN_S,
    retry_after_s: float = FIRST_S,
) -> None:
    """Make a participant leave the room; a phone's leg hangs up then.

    A leg that can do so is asked to leave by itself (``_leaves_by_itself``). Other participants are
    removed; that is retried for ``within_s`` until LiveKit confirms it. After that the gateway's
    reconciler hangs up. ``told``: the call's record has the reason for the end.
    """
    target = api.RoomParticipantIdentity(room=room.name, identity=identity)
    backoff = Backoff(retry_after_s, longest=2.0)
    if await _leaves_by_itself(room, identity, told=told):
        return
    try:
        async with asyncio.timeout(within_s):
            while (failure := await _remove(livekit, target, attempt_within_s)) is not None:
                log.warning("could not hang up", extra={"error": failure})
                await backoff.wait()
    except TimeoutError:
        log.error("a phone is left to the gateway", extra={"room": room.name})


async def _leaves_by_itself(room: rtc.Room, identity: str, *, told: bool) -> bool:
    """Ask a phone's leg to hang up and leave; return True if it agrees.

    Removing a leg costs its SIP service memory: LiveKit's SDK (1.1.21) never frees a room that the
    server ended, which leaks half a megabyte and some threads per call. But a leg that leaves by
    itself looks as if its phone had hung up, so the record must have the true reason first
    (``told``). The bridge's legs can also leave as if they had been removed.
    """
    leg = room.remote_participants.get(identity)
    if leg is None or leg.kind != rtc.ParticipantKind.PARTICIPANT_KIND_SIP:
        return False
    on_the_phone = leg.attributes.get(CALL_STATUS) == "active"
    if not told and not (on_the_phone and leg.attributes.get(BRIDGE)):
        return False
    try:
        # The SDK does not keep its own deadlines while the room's connection is being lost.
        async with asyncio.timeout(_LEG_LEAVES_WITHIN_S + _TRIP_WITHIN_S):
            await room.local_participant.perform_rpc(
                destination_identity=identity,
                method=_END_CALL if told else LEAVE_METHOD,
                payload='{"headers":{}}',
                response_timeout=_LEG_LEAVES_WITHIN_S,
                max_round_trip_latency=_TRIP_WITHIN_S,
            )
    except (rtc.RpcError, TimeoutError) as error:
        log.info("the leg is removed instead", extra={"cause": str(error)})
        return False
    return True


async def _remove(
    livekit: api.LiveKitAPI, target: api.RoomParticipantIdentity, within_s: float
) -> str | None:
    """Remove a participant; return the error, or None once it is gone."""
    try:
        async with asyncio.timeout(within_s):
            await livekit.room.remove_participant(target)
    except api.TwirpError as error:
        return None if error.code == api.TwirpErrorCode.NOT_FOUND else error.code
    except (TimeoutError, aiohttp.ClientError) as error:
        return type(error).__name__
    return None


async def fall_silent(room: rtc.Room) -> None:
    """Unpublish the agent's tracks, which a leg that is over awaits before it leaves.

    Closing the conversation takes another second and does not need the room's audio.
    """
    try:
        async with asyncio.timeout(_SILENT_WITHIN_S):
            for sid in list(room.local_participant.track_publications):
                await room.local_participant.unpublish_track(sid)
    except (TimeoutError, UnpublishTrackError) as error:
        log.info("a track stays until the agent leaves", extra={"cause": str(error)})


async def leave(room: rtc.Room) -> None:
    """Leave the room now; the job may last until its events are delivered."""
    try:
        async with asyncio.timeout(_LEAVE_WITHIN_S):
            await room.disconnect()
    except TimeoutError:
        log.warning("could not leave the room in time")
