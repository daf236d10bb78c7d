"""Place a call: from a checked plan to a ringing phone.

``place`` stores the record, which reserves a worker's place for the agent, claims the room, dials,
and returns once the SIP participant is in the room. ``accept`` stores the record and returns; a
task does the rest. From there until the answer a task follows the call (gateway.calls.following).
Every outbound call passes the destination policy, the tenant's limits and the guard of SIP
addresses here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.models import ParticipantInfo

from core.errors import AppError, Conflict, ServerFault, Unavailable
from core.events import ended
from core.models import Agent, CallEvent
from gateway.calls.dispatcher import Arrival, Dispatcher
from gateway.calls.following import NEVER_DIALLED, DialInProgress, Following
from gateway.calls.limits import CallLimits
from gateway.calls.livekit import LIVEKIT_ERRORS, participants, present, tidy
from gateway.calls.places.line import Line
from gateway.calls.plan import CallPlan
from gateway.calls.policy import DialPolicy
from gateway.calls.rooms import Claimed, LiveKitRooms
from gateway.calls.timeline import Journal, Timeline, Watch
from gateway.calls.trunks import check_trunk
from gateway.lookup.agents import check_records
from gateway.store.call_status import Call
from gateway.store.calls import LiveIdentity, Store
from gateway.store.room_names import HeldByToken
from sip.adopted_dial import AdoptedDial, why_left
from sip.dial import Dial, DialFailed, DialOutcome, Joined
from sip.guard import SipGuard

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_WEBHOOK_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True)
class Placed:
    call_id: str
    ids: Joined


class Outbound:
    """Places calls, and owns the tasks that place and follow them."""

    def __init__(
        self,
        *,
        livekit: LiveKitAPI,
        sip: LiveKitAPI,
        store: Store,
        timeline: Timeline,
        rooms: LiveKitRooms,
        journal: Journal,
        dispatcher: Dispatcher,
        line: Line,
        policy: DialPolicy,
        limits: CallLimits,
        guard: SipGuard,
        agent_join_timeout_s: float,
    ) -> None:
        self._livekit = livekit
        self._sip = sip
        self._store = store
        self._timeline = timeline
        self._rooms = rooms
        self._journal = journal
        self._dispatcher = dispatcher
        self._line = line
        self._policy = policy
        self._limits = limits
        self._guard = guard
        self._agent_join_timeout_s = agent_join_timeout_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._followed: set[str] = set()

    def follows(self, call_id: str) -> bool:
        """Return True while this process follows the call; the reconciler skips such calls."""
        return call_id in self._followed

    async def room_exists(self, plan: CallPlan) -> bool:
        """Check the room for a dry run. Raises NotFound (another tenant's), ServerFault."""
        try:
            return await self._rooms.exists(plan.principal, plan.room_name)
        except LIVEKIT_ERRORS as error:
            raise _livekit_failed(error) from error

    async def place(self, plan: CallPlan) -> Placed:
        """Dial. Raises Forbidden, NotFound, Conflict, TooManyRequests, ServerFault, Unavailable.

        Once begun, it finishes even if the HTTP client disconnects, so that no call is left
        half placed.
        """
        await self._admit(plan)
        return await asyncio.shield(self._spawn(self._place(plan), "place"))

    async def accept(self, plan: CallPlan) -> None:
        """Store the record and dial in the background; the record shows the outcome.

        The plan's room must be the call's own. Raises Forbidden, TooManyRequests, Unavailable.
        """
        await self._admit(plan)
        await asyncio.shield(self._spawn(self._accept(plan), "place"))

    async def _admit(self, plan: CallPlan) -> None:
        """Check policy, limits and trunk.

        Raises Forbidden ``DESTINATION_NOT_ALLOWED``, TooManyRequests, Unavailable.
        """
        self._policy.check(
            plan.to_number,
            from_number=plan.from_number,
            trunk_country=plan.trunk.country,
            tenant=plan.principal.auth_id is not None,
        )
        await self._limits.check(plan.principal.auth_id, with_agent=plan.agent is not None)
        await self._limits.take(plan.principal.auth_id)
        await check_trunk(self._guard, plan.trunk)

    async def adopt(self, call: Call) -> None:
        """Follow a call whose gateway is gone, from here on. It is not dialled."""
        self._followed.add(call.id)
        self._spawn(self._follow_adopted(call), "follow")

    async def _follow_adopted(self, call: Call) -> None:
        dial = AdoptedDial(self._livekit, call.room_name, call.participant_identity)

        async def verdict(outcome: DialOutcome) -> None:
            if not outcome.answered:
                outcome = await self._why_left(call.id)
            await self._journal.verdict(call.id, outcome)

        await self._follow_dial(
            call.id, call.room_name, dial, with_agent=call.agent_id is not None, verdict=verdict
        )

    async def _why_left(self, call_id: str) -> DialOutcome:
        """Return the verdict on a phone that is gone, by LiveKit's webhook about it."""
        watch = Watch(call_id, self._store, self._timeline)
        await watch.until("livekit.participant_left", "call.ended", timeout_s=_WEBHOOK_WITHIN_S)
        told = await self._store.events(call_id, types=["livekit.participant_left"])
        return why_left(told[-1].data.get("disconnectReason") if told else None)

    async def drain(self, timeout: float) -> None:
        """Wait for the verdicts of dials, then stop following them (LiveKit keeps them ringing)."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _place(self, plan: CallPlan) -> Placed:
        # First the name: what follows must tell nobody of another tenant's calls, nor hinder them.
        try:
            exists = await self._rooms.claim(plan.principal, plan.room_name)
        except LIVEKIT_ERRORS as error:
            raise _livekit_failed(error) from error
        others = await self._others(plan) if exists else []
        if any(other.identity == plan.participant_identity for other in others):
            raise _identity_taken()
        agent = _joining_agent(plan, others)
        check_records(agent, record=plan.record)
        # Before the room: the record reserves a worker's place, and the agent is dispatched there.
        await self._insert(plan, agent)
        try:
            claimed = await self._enter(plan, agent)
        except AppError as error:
            await self._never_dialled(plan, error)
            raise
        return Placed(plan.call_id, await self._start(plan, agent, created=claimed.created))

    async def _accept(self, plan: CallPlan) -> None:
        call = await self._insert(plan, plan.agent, may_wait=True)
        self._followed.add(plan.call_id)
        self._spawn(self._place_accepted(plan, waits=call.place == "wanted"), "follow")

    async def _place_accepted(self, plan: CallPlan, *, waits: bool) -> None:
        entered = started = False
        try:
            if waits and not await self._has_place(plan.call_id):
                return
            claimed = await self._enter(plan, plan.agent)
            entered = True
            # The call may have been ended while it was queued.
            if await self._store.events(plan.call_id, types=["call.ended"]):
                await tidy(self._livekit, plan.room_name)
                return
            await self._start(plan, plan.agent, created=claimed.created)
            started = True
        except AppError as error:
            log.warning(
                "accepted call not placed", extra={"call_id": plan.call_id, "code": error.code}
            )
            # _start has already recorded what it raises, unless the database was down.
            if not entered or error.code == "STORE_UNAVAILABLE":
                await self._never_dialled(plan, error)
        finally:
            if not started:
                self._followed.discard(plan.call_id)

    async def _has_place(self, call_id: str) -> bool:
        """Wait for a worker's place; False: the call has ended, for want of one or otherwise."""
        standing = await self._line.wait(call_id)
        if standing == "wanted":
            over = ended("failed", "agent_unavailable", note=await self._line.why("room"))
            await self._journal.write(call_id, "call.ended", over)
        return standing == "held"

    async def _never_dialled(self, plan: CallPlan, error: AppError) -> None:
        no_room = error.code in ("CALL_FAILED", "SIP_OVERLOADED")
        outcome = replace(NEVER_DIALLED, problem="livekit" if no_room else None)
        await self._journal.verdict(plan.call_id, outcome)

    async def _others(self, plan: CallPlan) -> list[ParticipantInfo]:
        try:
            return await present(self._livekit, plan.room_name)
        except LIVEKIT_ERRORS as error:
            raise _livekit_failed(error) from error

    async def _enter(self, plan: CallPlan, agent: Agent | None) -> Claimed:
        """Claim the room. A new one gets the agent dispatched."""
        agents = []
        if agent is not None:
            seat = await self._dispatcher.seat(plan.call_id)
            agents.append(self._dispatcher.dispatch(plan.call_id, seat))
        try:
            return await self._rooms.enter(plan.principal, plan.room_name, agents)
        except LIVEKIT_ERRORS as error:
            raise _livekit_failed(error) from error

    async def _start(self, plan: CallPlan, agent: Agent | None, *, created: bool) -> Joined:
        """Dial, and follow the call. Raises ServerFault, Unavailable; the record says why."""
        try:
            if agent is not None and not created:
                await self._dispatcher.send(plan.call_id, plan.room_name)
            dial, ids = await self._dial(plan, agent)
        except (ServerFault, Unavailable):
            if created:
                await tidy(self._livekit, plan.room_name)
            raise
        self._followed.add(plan.call_id)
        self._spawn(self._follow(plan, dial, agent, created=created), "follow")
        return ids

    async def _dial(self, plan: CallPlan, agent: Agent | None) -> tuple[Dial, Joined]:
        """Dial until the participant is in the room. If this raises, no phone is left ringing.

        Raises ServerFault, Unavailable.
        """
        call_id = plan.call_id
        dial = Dial(self._sip, self._livekit, plan.dial(agent))
        try:
            ids = await dial.joined()
            data = {"participantId": ids.participant_id, "sipCallId": ids.sip_call_id}
            await self._journal.write(call_id, "call.dialing", data)
        except DialFailed as error:
            await self._journal.verdict(call_id, error.outcome)
            if error.outcome.overloaded:
                raise Unavailable(
                    "The SIP service is at its limit", code="SIP_OVERLOADED", retry_after_s=2
                ) from None
            raise ServerFault("The call could not be placed", code="CALL_FAILED") from None
        except TimeoutError:
            await dial.abandon()
            await self._journal.verdict(call_id, NEVER_DIALLED)
            raise ServerFault("The call could not be placed", code="CALL_FAILED") from None
        except BaseException:
            # A call that cannot be recorded must not ring.
            await dial.abandon()
            raise
        return dial, ids

    async def _follow(
        self, plan: CallPlan, dial: Dial, agent: Agent | None, *, created: bool
    ) -> None:
        outcome = await self._follow_dial(
            plan.call_id,
            plan.room_name,
            dial,
            with_agent=agent is not None,
            verdict=lambda outcome: self._journal.verdict(plan.call_id, outcome),
        )
        if created and outcome is not None and not outcome.answered:
            await tidy(self._livekit, plan.room_name)

    async def _follow_dial(
        self,
        call_id: str,
        room_name: str,
        dial: DialInProgress,
        *,
        with_agent: bool,
        verdict: Callable[[DialOutcome], Awaitable[None]],
    ) -> DialOutcome | None:
        journal = self._journal
        watch = Watch(call_id, self._store, self._timeline)
        arrival = Arrival(
            call_id,
            room_name,
            watch=watch,
            journal=journal,
            dispatcher=self._dispatcher,
            timeout_s=self._agent_join_timeout_s,
        )
        following = Following(
            dial,
            watch,
            ringing=lambda: journal.write(call_id, "call.ringing"),
            verdict=verdict,
            arrival=arrival if with_agent else None,
        )
        try:
            return await following.run()
        finally:
            self._followed.discard(call_id)

    async def _insert(self, plan: CallPlan, agent: Agent | None, *, may_wait: bool = False) -> Call:
        """Store the record, with a place for its agent.

        Raises Conflict ``PARTICIPANT_EXISTS``, TooManyRequests ``CONCURRENCY_LIMIT``, Unavailable.
        """
        new, queued = plan.new_call(agent), CallEvent(type="call.queued")
        try:
            try:
                return await self._limits.insert(new, queued, may_wait=may_wait)
            except LiveIdentity as held:
                # The participant is not in the room. Unless that call is being placed right
                # now, its record was left behind by a gateway that died.
                if self.follows(held.call_id) or not await self._left_behind(held.call_id, plan):
                    raise
                return await self._limits.insert(new, queued, may_wait=may_wait)
        except (HeldByToken, LiveIdentity):
            # A join with that token would disconnect the phone, and be mistaken for it.
            raise _identity_taken() from None

    async def _left_behind(self, call_id: str, plan: CallPlan) -> bool:
        """End the record of a call that was dialled and has left its room; False: it did not."""
        if not await self._store.events(call_id, types=["call.dialing"]):
            return False
        others = await participants(self._livekit, plan.room_name)
        if any(other.identity == plan.participant_identity for other in others):
            return False
        gone = CallEvent(type="call.ended", data=ended("failed", "dial_failed", note="left behind"))
        await self._timeline.append(call_id, [gone], "reconciler")
        return True

    def _spawn(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # The request answers for a failing "place".
        if task.get_name() == "follow" and not task.cancelled() and task.exception():
            log.error("following a call failed", exc_info=task.exception())


def _joining_agent(plan: CallPlan, present: list[ParticipantInfo]) -> Agent | None:
    """Return the plan's agent; None if the room has one already and the plan names none."""
    occupied = any(other.kind == ParticipantInfo.Kind.AGENT for other in present)
    return None if occupied and not plan.agent_named else plan.agent


def _identity_taken() -> Conflict:
    return Conflict(
        "A participant with this identity is already in the room, or may join it",
        code="PARTICIPANT_EXISTS",
    )


def _livekit_failed(error: Exception) -> ServerFault | Unavailable:
    log.error("LiveKit did not serve a request", extra={"problem": type(error).__name__})
    if isinstance(error, ServerError) and error.code == "resource_exhausted":
        return Unavailable("LiveKit is at its limit", code="SIP_OVERLOADED", retry_after_s=2)
    return ServerFault("The call could not be placed", code="CALL_FAILED")
