"""Reconcile the records of calls with LiveKit's rooms.

A gateway may be killed mid-dial, a webhook lost, an agent crash; LiveKit knows who is in which
room. The reconciler runs at the start and every minute, and never dials:

- a call without its participant is over: its record is finished;
- a phone that is alone in its room, because its agent never came or has left, is hung up; a human
  does not count as company before taking over the call. If its agent should be there, another one
  is sent for (gateway.calls.recovery);
- a phone whose call is over is hung up;
- a caller that nobody has reported gets a record;
- the names of existing rooms are held for their tenants (gateway.calls.rooms).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.models import ParticipantInfo, Room

from core.errors import AppError, Gone
from core.events import ended
from core.models import CallEvent, DisconnectionReason, now
from gateway.calls.handover import Handover, humans_of, is_referring, is_transferred
from gateway.calls.inbound import Inbound, call_id_of, is_caller, left_unanswered
from gateway.calls.livekit import leg_of, present, send_away_or_log
from gateway.calls.outbound import Outbound
from gateway.calls.places.line import LONGEST_WAIT
from gateway.calls.recovery.service import Recovery
from gateway.calls.rooms import LiveKitRooms
from gateway.calls.timeline import Timeline
from gateway.calls.web import JOIN_WITHIN
from gateway.fields.names import is_name
from gateway.store.call_status import Call
from gateway.store.calls import Store
from gateway.store.database import Scope
from sip.trunks import read_label

log = logging.getLogger(__name__)

PERIOD_S = 60.0
# A younger call may have a record but no participant yet.
_SETTLED = timedelta(seconds=20)
# No call rings and talks for longer (a call lasts a day at most), so no older phone is left.
_LONGEST = timedelta(hours=25)

_HURRY_S = 40.0
"""Twice the age at which a call is looked at."""

Finding = Literal["gone", "alone"]


class Reconciler:
    def __init__(
        self,
        *,
        livekit: LiveKitAPI,
        store: Store,
        timeline: Timeline,
        rooms: LiveKitRooms,
        outbound: Outbound,
        inbound: Inbound,
        recovery: Recovery,
        second_look_s: float = 5.0,
        alone_s: float = 20.0,
    ) -> None:
        """``alone_s``: how long a phone may be without an agent."""
        self._second_look_s = second_look_s
        self._alone_s = alone_s
        self._livekit = livekit
        self._store = store
        self._timeline = timeline
        self._rooms = rooms
        self._outbound = outbound
        self._inbound = inbound
        self._recovery = recovery
        self._handover = Handover(livekit, store, timeline)
        self._alone_since: dict[str, float] = {}
        self._hurry_until = 0.0

    def hurry(self) -> None:
        """Look often for a while: a gateway is gone, and may have left calls behind."""
        self._hurry_until = time.monotonic() + _HURRY_S

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Run until cancelled. Failures are logged and retried in the next round."""
        while True:
            with _logged():
                await self.round()
            # Do not leave a phone without an agent alone for another minute.
            hurried = self._alone_since or time.monotonic() < self._hurry_until
            await asyncio.sleep(self._second_look_s if hurried else period_s)

    async def round(self) -> int:
        """Check every unfinished call twice; return how many were finished here.

        The participant of a call that has just ended leaves its room before this gateway or
        another writes the verdict. So only a call that is still open and still missing in the
        second check was left behind.
        """
        await self._look_into_rooms()
        if suspects := await self._suspects():
            await asyncio.sleep(self._second_look_s)
        finished = 0
        for call_id, (call, finding) in (await self._suspects() if suspects else {}).items():
            if call_id in suspects and suspects[call_id][1] == finding:
                with _one_of_many(call_id):
                    await self._finish(call, finding)
                    finished += 1
        await self._store.sweep()
        return finished

    # --- rooms that a SIP service made for callers

    async def _look_into_rooms(self) -> None:
        others = []
        for room in await self._rooms.look():
            call_id = call_id_of(room.name)
            with _one_of_many(call_id):
                if "number_id" not in read_label(room.metadata):
                    others.append(room.name)
                    continue
                call = await self._store.call(Scope(None), call_id)
                if call is None:
                    await self._take_up(room)
                elif call.ended_at is not None and call.ended_at < now() - _SETTLED:
                    await self._clear(room, call)
        # Most of these rooms have no ended call, so LiveKit need not list their participants.
        for room_name in await self._store.rooms_of_ended(
            list(filter(is_name, others)),
            created_after=now() - _LONGEST,
            ended_before=now() - _SETTLED,
        ):
            with _one_of_many(call_id_of(room_name)):
                await self._clear_of_ended(room_name)

    async def _take_up(self, room: Room) -> None:
        for caller in filter(is_caller, await present(self._livekit, room.name)):
            at = datetime.fromtimestamp(caller.joined_at, UTC) if caller.joined_at else None
            with contextlib.suppress(Gone):
                call = await self._inbound.admit(room.name, caller, at)
                log.warning("found an unreported call", extra={"call_id": call.id})

    async def _clear(self, room: Room, call: Call) -> None:
        """Hang up the caller of an ended call, who still hears ringing or silence."""
        if _alone(await present(self._livekit, room.name), call):
            log.warning("hung up on a caller left behind", extra={"call_id": call.id})
            await send_away_or_log(self._livekit, call.room_name, call.participant_identity)

    async def _clear_of_ended(self, room_name: str) -> None:
        """Hang up dialled phones whose call is over, and which could not be hung up then."""
        try:
            others = await present(self._livekit, room_name)
        except ServerError as error:
            facts = {"room": room_name, "problem": error.code}
            return log.warning("LiveKit gives no information on a room", extra=facts)
        if any(other.kind == ParticipantInfo.Kind.AGENT for other in others):
            return  # an agent talks to them, whatever the record says
        for phone in others:
            leg = leg_of(phone)
            if leg is None or leg.role == "visitor":
                continue
            call = await self._store.call(Scope(None), leg.id)
            if call is not None and call.ended_at and call.ended_at < now() - _SETTLED:
                log.warning("hung up on a phone left behind", extra={"call_id": call.id})
                await send_away_or_log(self._livekit, room_name, phone.identity)

    # --- unfinished calls

    async def _suspects(self) -> dict[str, tuple[Call, Finding]]:
        """Return the calls that nobody follows and that look left behind, with the finding."""
        found: dict[str, tuple[Call, Finding]] = {}
        alone: dict[str, float] = {}
        async for call, others in self._unfollowed():
            with _one_of_many(call.id):
                if not any(other.identity == call.participant_identity for other in others):
                    found[call.id] = call, "gone"
                elif call.agent_id is not None and await self._left_alone(call, others):
                    since = alone[call.id] = self._alone_since.get(call.id, time.monotonic())
                    if time.monotonic() - since >= self._alone_s:
                        found[call.id] = call, "alone"
        self._alone_since = alone
        return found

    async def _unfollowed(self) -> AsyncIterator[tuple[Call, list[ParticipantInfo]]]:
        for call in await self._store.unfinished_calls(created_before=now() - _SETTLED):
            if any(
                those.follows(call.id) for those in (self._outbound, self._inbound, self._recovery)
            ):
                continue
            if call.type == "stream" or _awaits_visitor(call) or _awaits_place(call):
                continue  # a session has no room: see gateway.calls.streams.reconciler
            try:
                yield call, await present(self._livekit, call.room_name)
            except ServerError as error:
                # One call whose room LiveKit cannot list must not keep the others open.
                facts = {"call_id": call.id, "problem": error.code}
                log.warning("LiveKit gives no information on a call", extra=facts)

    async def _left_alone(self, call: Call, others: list[ParticipantInfo]) -> bool:
        humans = humans_of(call, others)
        if humans and not await is_transferred(self._store, call.id):
            others = [other for other in others if other not in humans]
        return _alone(others, call)

    async def _finish(self, call: Call, finding: Finding) -> None:
        transferred = await is_transferred(self._store, call.id)
        answered = call.answered_at is not None
        if (
            finding == "alone"
            and answered
            and not transferred
            and await self._recovery.missed(call)
        ):
            return
        if transferred and answered:
            data = ended("completed", "call_transfer", note=f"found {finding}")
        else:
            data = _left_alone(call) if finding == "alone" else await self._gone(call)
        log.warning(
            "finished a call nobody followed", extra={"call_id": call.id, "finding": finding}
        )
        # Before the hang-up, so that LiveKit's webhook finds the reason already recorded.
        await self._timeline.append(
            call.id, [CallEvent(type="call.ended", data=data)], "reconciler"
        )
        if finding == "alone":
            await send_away_or_log(self._livekit, call.room_name, call.participant_identity)
        await self._handover.caller_left(call)

    async def _gone(self, call: Call) -> dict[str, Any]:
        if call.answered_at is not None:
            referred = await is_referring(self._store, call.id)
            reason: DisconnectionReason = "call_transfer" if referred else "user_hangup"
            return ended("completed", reason, note="found gone")
        if call.direction == "inbound":
            told = await self._store.events(call.id, types=["livekit.participant_left"])
            facts = told[-1].data if told else {}
            status, reason = left_unanswered(facts.get("callStatus"), facts.get("disconnectReason"))
            return ended(status, reason, note="found gone before an answer was seen")
        if call.direction == "web":
            return ended("canceled", "canceled", note="nobody came")
        if call.participant_id is None:
            return ended("failed", "dial_failed", note="never dialled")
        return ended("failed", "dial_failed", note="found gone before an answer was seen")


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except (AppError, ServerError, aiohttp.ClientError, TimeoutError) as error:
        log.warning("reconciling failed", extra={"problem": type(error).__name__})
    except Exception:
        # An unexpected error must not stop the reconciler unnoticed.
        log.exception("reconciling failed")


@contextlib.contextmanager
def _one_of_many(call_id: str) -> Iterator[None]:
    """Log an error of one call, so that the round continues with the others."""
    try:
        yield
    except (AppError, ServerError, aiohttp.ClientError, TimeoutError) as error:
        facts = {"call_id": call_id, "problem": type(error).__name__}
        log.warning("reconciling a call failed", extra=facts)
    except Exception:
        log.exception("reconciling a call failed", extra={"call_id": call_id})


def _awaits_visitor(call: Call) -> bool:
    """Return True while a web call's visitor may still join, whichever gateway opened the call."""
    waiting = call.direction == "web" and call.answered_at is None
    return waiting and call.created_at > now() - JOIN_WITHIN - _SETTLED


def _awaits_place(call: Call) -> bool:
    """Return True while the call may wait for a worker's place, whichever gateway follows it."""
    return call.place == "wanted" and call.created_at > now() - LONGEST_WAIT - _SETTLED


def _alone(others: list[ParticipantInfo], call: Call) -> bool:
    """Return True if the call's phone is the room's only participant."""
    return [other.identity for other in others] == [call.participant_identity]


def _left_alone(call: Call) -> dict[str, Any]:
    if call.answered_at is None:
        return ended("failed", "agent_unavailable", note="no agent in the room")
    return ended("failed", "agent_error", note="no agent in the room any more")
