"""Placing a call: from a checked plan to a phone that rings.

``place`` claims the room, keeps the record, dials, and returns once the SIP
participant is in the room. The rest of the call's beginning is followed by a task
of its own (gateway.following).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.models import ParticipantInfo

from core.errors import Conflict, ServerFault, Unavailable
from core.events import ended
from core.models import Agent, CallEvent, new_id
from core.store import LiveIdentity, NewCall, Store
from gateway.auth import Principal
from gateway.following import (
    LIVEKIT_ERRORS,
    Dispatcher,
    Following,
    Journal,
    participants,
    tidy,
)
from gateway.live import Timeline
from gateway.room_access import LiveKitRooms, may_use, not_accessible
from sip.dial import Dial, DialFailed, DialOutcome, DialRequest, Joined, Trunk

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# The worker ends a call that is too long, with a word; the SIP service only if that failed.
_BACKSTOP_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """Everything about a call that is to be placed, checked."""

    principal: Principal
    room_name: str
    participant_identity: str
    participant_name: str
    from_number: str
    to_number: str
    trunk: Trunk
    agent: Agent | None
    agent_named: bool = False
    ringing_timeout_s: int = 30
    max_duration_s: int = 3600
    headers: Mapping[str, str] = field(default_factory=dict)
    dtmf: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    call_id: str
    ids: Joined


class Outbound:
    """Places calls, and owns the tasks that do and that follow them."""

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
        agent_join_timeout_s: float,
    ) -> None:
        self._livekit = livekit
        self._sip = sip
        self._store = store
        self._timeline = timeline
        self._rooms = rooms
        self._journal = journal
        self._dispatcher = dispatcher
        self._agent_join_timeout_s = agent_join_timeout_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._followed: set[str] = set()

    def follows(self, call_id: str) -> bool:
        """Whether this process still waits for news of the call (the reconciler lets it)."""
        return call_id in self._followed

    async def room_exists(self, plan: CallPlan) -> bool:
        """For a dry run. Raises NotFound when the room is another's, ServerFault."""
        try:
            room = await self._rooms.find(plan.room_name)
        except LIVEKIT_ERRORS as error:
            raise _livekit_failed(error) from error
        if room is not None and not may_use(plan.principal, room):
            raise not_accessible()
        return room is not None

    async def place(self, plan: CallPlan) -> Placed:
        """Dial. Raises NotFound, Conflict, ServerFault, Unavailable; see contracts.md §1.

        Once begun it finishes, whether or not the HTTP client waits: a dropped
        connection must not leave a half-placed call.
        """
        return await asyncio.shield(self._spawn(self._place(plan), "place"))

    async def drain(self, timeout: float) -> None:
        """Wait for dials to get their verdict, then let go of them (they ring on in LiveKit)."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _place(self, plan: CallPlan) -> Placed:
        call_id = new_id("call")
        agents = [self._dispatcher.dispatch(call_id)] if plan.agent else []
        try:
            claimed = await self._rooms.enter(plan.principal, plan.room_name, agents)
            present = [] if claimed.created else await participants(self._livekit, plan.room_name)
        except LIVEKIT_ERRORS as error:
            raise _livekit_failed(error) from error
        if any(other.identity == plan.participant_identity for other in present):
            raise _identity_taken()
        agent = _joining_agent(plan, present)
        await self._insert(call_id, plan, agent)
        try:
            if agent is not None and not await worker_free(
                self._store, self._dispatcher.agent_name
            ):
                await self._journal.write(
                    call_id, "call.ended", ended("failed", "agent_unavailable")
                )
                raise no_worker()
            if agent is not None and not claimed.created:
                await self._dispatcher.send(call_id, plan.room_name)
            dial, ids = await self._dial(call_id, plan, agent)
        except (ServerFault, Unavailable):
            if claimed.created:
                await tidy(self._livekit, plan.room_name)
            raise
        self._followed.add(call_id)
        self._spawn(self._follow(call_id, plan, dial, agent, created=claimed.created), "follow")
        return Placed(call_id, ids)

    async def _dial(self, call_id: str, plan: CallPlan, agent: Agent | None) -> tuple[Dial, Joined]:
        """Until the participant is in the room. When it raises (ServerFault, …), nothing rings."""
        dial = Dial(self._sip, self._livekit, _request(call_id, plan, agent))
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
            await self._journal.verdict(call_id, DialOutcome(status="failed", reason="dial_failed"))
            raise ServerFault("The call could not be placed", code="CALL_FAILED") from None
        except BaseException:
            # What cannot be written down must not ring.
            await dial.abandon()
            raise
        return dial, ids

    async def _follow(
        self, call_id: str, plan: CallPlan, dial: Dial, agent: Agent | None, *, created: bool
    ) -> None:
        following = Following(
            call_id,
            plan.room_name,
            dial,
            store=self._store,
            timeline=self._timeline,
            journal=self._journal,
            dispatcher=self._dispatcher if agent else None,
            agent_join_timeout_s=self._agent_join_timeout_s,
        )
        try:
            outcome = await following.run()
        finally:
            self._followed.discard(call_id)
        if created and not outcome.answered:
            await tidy(self._livekit, plan.room_name)

    async def _insert(self, call_id: str, plan: CallPlan, agent: Agent | None) -> None:
        new = NewCall(
            id=call_id,
            auth_id=plan.principal.auth_id,
            direction="outbound",
            room_name=plan.room_name,
            participant_identity=plan.participant_identity,
            from_number=plan.from_number,
            to_number=plan.to_number,
            max_duration_ms=plan.max_duration_s * 1000,
            agent=agent,
            metadata=plan.metadata,
        )
        queued = CallEvent(type="call.queued")
        try:
            await self._store.insert_call(new, queued)
        except LiveIdentity as held:
            # The participant is not in the room. A call being placed right now will
            # be; any other record was left behind by a gateway that died.
            if self.follows(held.call_id) or not await self._left_behind(held.call_id, plan):
                raise _identity_taken() from None
            await self._store.insert_call(new, queued)

    async def _left_behind(self, call_id: str, plan: CallPlan) -> bool:
        """Close the record of a call that was once in its room and is there no more."""
        if not await self._store.events(call_id, types=["call.dialing"]):
            return False
        present = await participants(self._livekit, plan.room_name)
        if any(other.identity == plan.participant_identity for other in present):
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
        # A failing "place" is the request's to answer.
        if task.get_name() == "follow" and not task.cancelled() and task.exception():
            log.error("following a call failed", exc_info=task.exception())


async def worker_free(store: Store, agent_name: str) -> bool:
    """Whether some worker could take a call now. Raises Unavailable (the database)."""
    return any(
        worker.agent_name == agent_name and not worker.draining and worker.active < worker.capacity
        for worker in await store.workers()
    )


def no_worker() -> Unavailable:
    return Unavailable("No agent worker is free", code="AGENT_UNAVAILABLE", retry_after_s=5)


def _joining_agent(plan: CallPlan, present: list[ParticipantInfo]) -> Agent | None:
    """A second call into a room with an agent gets none of its own, unless it names one."""
    occupied = any(other.kind == ParticipantInfo.Kind.AGENT for other in present)
    return None if occupied and not plan.agent_named else plan.agent


def _request(call_id: str, plan: CallPlan, agent: Agent | None) -> DialRequest:
    return DialRequest(
        trunk=plan.trunk,
        from_number=plan.from_number,
        to_number=plan.to_number,
        room_name=plan.room_name,
        participant_identity=plan.participant_identity,
        participant_name=plan.participant_name,
        attributes={"switchroom.callId": call_id},
        headers=plan.headers,
        dtmf=plan.dtmf,
        ringing_timeout_s=plan.ringing_timeout_s,
        max_call_duration_s=plan.max_duration_s + (_BACKSTOP_S if agent else 0),
    )


def _identity_taken() -> Conflict:
    return Conflict(
        "A participant with this identity is already in the room", code="PARTICIPANT_EXISTS"
    )


def _livekit_failed(error: Exception) -> ServerFault | Unavailable:
    log.error("LiveKit did not serve a request", extra={"problem": type(error).__name__})
    if isinstance(error, ServerError) and error.code == "resource_exhausted":
        return Unavailable("LiveKit is at its limit", code="SIP_OVERLOADED", retry_after_s=2)
    return ServerFault("The call could not be placed", code="CALL_FAILED")
