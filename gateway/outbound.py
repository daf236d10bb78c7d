"""Placing a call, and following it until somebody else can.

A plan is complete before anything happens; ``place`` then claims the room, keeps
the record, dials, and answers once the SIP participant is in the room. A task per
call waits for the far end's verdict and for the agent, and writes both down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.agent_dispatch import CreateAgentDispatchRequest, RoomAgentDispatch
from livekit.protocol.models import ParticipantInfo, Room
from livekit.protocol.room import (
    DeleteRoomRequest,
    ListParticipantsRequest,
    RoomParticipantIdentity,
)

from core.errors import Conflict, ServerFault, Unavailable
from core.events import ended
from core.models import Agent, CallEvent, JobMetadata, new_id
from core.store import LiveIdentity, NewCall, Store
from core.tokens import TokenIssuer
from gateway.auth import Principal
from gateway.live import Timeline
from gateway.metrics import Metrics
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
    """Places calls and owns their following tasks."""

    def __init__(
        self,
        *,
        livekit: LiveKitAPI,
        sip: LiveKitAPI,
        store: Store,
        timeline: Timeline,
        rooms: LiveKitRooms,
        tokens: TokenIssuer,
        metrics: Metrics,
        agent_name: str,
        agent_join_timeout_s: float,
    ) -> None:
        self._livekit = livekit
        self._sip = sip
        self._store = store
        self._timeline = timeline
        self._rooms = rooms
        self._tokens = tokens
        self._metrics = metrics
        self._agent_name = agent_name
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
        except (ServerError, aiohttp.ClientError, TimeoutError) as error:
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
        dispatch = self._dispatch(call_id) if plan.agent else None
        try:
            claimed = await self._rooms.enter(
                plan.principal, plan.room_name, [dispatch] if dispatch else []
            )
            others = [] if claimed.created else await self._participants(plan.room_name)
        except (ServerError, aiohttp.ClientError, TimeoutError) as error:
            raise _livekit_failed(error) from error
        if any(other.identity == plan.participant_identity for other in others):
            raise _identity_taken()
        agent = self._joining_agent(plan, claimed.room, others)
        await self._insert(call_id, plan, agent)
        if agent is not None and not await self._worker_free():
            await self._end(call_id, ended("failed", "agent_unavailable"))
            await self._tidy(plan.room_name, created=claimed.created)
            raise Unavailable("No agent worker is free", code="AGENT_UNAVAILABLE", retry_after_s=5)
        if agent is not None and not claimed.created:
            await self._dispatch_into(call_id, plan.room_name)
        dial = Dial(self._sip, self._livekit, self._request(call_id, plan, agent))
        try:
            ids = await dial.joined()
        except (DialFailed, TimeoutError) as error:
            outcome = error.outcome if isinstance(error, DialFailed) else None
            if outcome is None:
                await dial.cancel()
                await dial.aclose()
                outcome = DialOutcome(status="failed", reason="dial_failed")
            await self._verdict(call_id, outcome)
            await self._tidy(plan.room_name, created=claimed.created)
            if outcome.overloaded:
                raise Unavailable(
                    "The SIP service is at its limit", code="SIP_OVERLOADED", retry_after_s=2
                ) from None
            raise ServerFault("The call could not be placed", code="CALL_FAILED") from None
        dialing = CallEvent(
            type="call.dialing",
            data={"participantId": ids.participant_id, "sipCallId": ids.sip_call_id},
        )
        await self._timeline.append(call_id, [dialing], "gateway")
        self._followed.add(call_id)
        following = self._follow(call_id, plan, dial, agent, created=claimed.created)
        self._spawn(following, "follow").add_done_callback(
            lambda _: self._followed.discard(call_id)
        )
        return Placed(call_id, ids)

    async def _follow(
        self, call_id: str, plan: CallPlan, dial: Dial, agent: Agent | None, *, created: bool
    ) -> None:
        """From the participant's arrival to the verdict and the agent's arrival."""
        try:
            async with asyncio.TaskGroup() as group:
                ringing = group.create_task(self._see_ringing(call_id, dial))
                if agent is not None:
                    group.create_task(self._await_agent(call_id, plan, dial))
                outcome = await dial.verdict()
                ringing.cancel()
                await self._verdict(call_id, outcome)
                if not outcome.answered:
                    await self._tidy(plan.room_name, created=created)
        finally:
            await dial.aclose()

    async def _see_ringing(self, call_id: str, dial: Dial) -> None:
        """No webhook tells of ringing (livekit-facts §1): look, until it rings or is over."""
        while (status := await dial.call_status()) == "dialing":  # noqa: ASYNC110 (not ours to set)
            await asyncio.sleep(0.5)
        if status == "ringing":
            await self._timeline.append(call_id, [CallEvent(type="call.ringing")], "gateway")

    async def _await_agent(self, call_id: str, plan: CallPlan, dial: Dial) -> None:
        """LiveKit neither queues nor retries a dispatch: ask again once, then give up clearly."""
        half = self._agent_join_timeout_s / 2
        if await self._agent_joined(call_id, half):
            return
        await self._dispatch_into(call_id, plan.room_name)
        if await self._agent_joined(call_id, half):
            return
        log.error("no agent joined the call", extra={"call_id": call_id})
        await self._end(call_id, ended("failed", "agent_unavailable"))
        await dial.cancel()

    async def _agent_joined(self, call_id: str, timeout: float) -> bool:
        """True when the agent has joined, or the call is over and none is needed."""
        deadline = asyncio.get_running_loop().time() + timeout
        async with self._timeline.listen(call_id) as news:
            while (left := deadline - asyncio.get_running_loop().time()) > 0:
                if await self._store.events(call_id, types=["agent.joined", "call.ended"]):
                    return True
                await news.wait(min(left, 1.0))
        return False

    async def _verdict(self, call_id: str, outcome: DialOutcome) -> None:
        self._metrics.dialled(outcome)
        if outcome.status is None or outcome.reason is None:
            await self._timeline.append(call_id, [CallEvent(type="call.answered")], "gateway")
            return
        data = ended(
            outcome.status,
            outcome.reason,
            sip_status_code=outcome.sip_status_code,
            sip_reason=outcome.sip_reason,
        )
        await self._end(call_id, data)

    async def _end(self, call_id: str, data: dict[str, Any]) -> None:
        await self._timeline.append(call_id, [CallEvent(type="call.ended", data=data)], "gateway")

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
        present = await self._participants(plan.room_name)
        if any(other.identity == plan.participant_identity for other in present):
            return False
        gone = CallEvent(type="call.ended", data=ended("failed", "dial_failed", note="left behind"))
        await self._timeline.append(call_id, [gone], "reconciler")
        return True

    def _joining_agent(
        self, plan: CallPlan, room: Room, others: list[ParticipantInfo]
    ) -> Agent | None:
        """A second call into a room with an agent gets none of its own, unless it names one."""
        occupied = any(other.kind == ParticipantInfo.Kind.AGENT for other in others)
        return None if occupied and not plan.agent_named else plan.agent

    async def _worker_free(self) -> bool:
        return any(
            worker.agent_name == self._agent_name
            and not worker.draining
            and worker.active < worker.capacity
            for worker in await self._store.workers()
        )

    def _dispatch(self, call_id: str) -> RoomAgentDispatch:
        metadata = JobMetadata(call_id=call_id, token=self._tokens.for_call(call_id))
        return RoomAgentDispatch(
            agent_name=self._agent_name, metadata=metadata.model_dump_json(by_alias=True)
        )

    async def _dispatch_into(self, call_id: str, room_name: str) -> None:
        dispatch = self._dispatch(call_id)
        try:
            await self._livekit.agent_dispatch.create_dispatch(
                CreateAgentDispatchRequest(
                    room=room_name, agent_name=dispatch.agent_name, metadata=dispatch.metadata
                )
            )
        except (ServerError, aiohttp.ClientError, TimeoutError):
            log.warning("dispatch failed", extra={"call_id": call_id})

    def _request(self, call_id: str, plan: CallPlan, agent: Agent | None) -> DialRequest:
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

    async def _participants(self, room_name: str) -> list[ParticipantInfo]:
        listed = await self._livekit.room.list_participants(ListParticipantsRequest(room=room_name))
        return list(listed.participants)

    async def _tidy(self, room_name: str, *, created: bool) -> None:
        """After a failed dial: a room of our own making with nobody but agents in it goes."""
        if not created:
            return
        try:
            others = await self._participants(room_name)
            if all(other.kind == ParticipantInfo.Kind.AGENT for other in others):
                await self._livekit.room.delete_room(DeleteRoomRequest(room=room_name))
        except (ServerError, aiohttp.ClientError, TimeoutError):
            log.info("room left to its own time-out", extra={"room": room_name})

    def _spawn(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.get_name() == "follow" and not task.cancelled() and task.exception():
            log.error("following a call failed", exc_info=task.exception())


async def hang_up(livekit: LiveKitAPI, room_name: str, identity: str) -> None:
    """Remove a participant: CANCEL while it rings, BYE afterwards. Raises ServerError."""
    await livekit.room.remove_participant(
        RoomParticipantIdentity(room=room_name, identity=identity)
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
