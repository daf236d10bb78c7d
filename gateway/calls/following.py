"""What happens to a call between its dial and its conversation, and how it is written down.

One ``Following`` per dialled call waits for the far end's verdict and for the
agent. Whatever says that the call is over ends the dial, too: nobody's phone is
left ringing for a call that has no other side any more.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.agent_dispatch import CreateAgentDispatchRequest, RoomAgentDispatch
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import DeleteRoomRequest, ListParticipantsRequest

from core.errors import Unavailable
from core.events import ended
from core.jobs import JobMetadata
from core.models import CallEvent
from core.tokens import TokenIssuer
from gateway.calls.timeline import POLL_S, Timeline
from gateway.http.metrics import Metrics
from gateway.store.calls import Store
from sip.dial import Dial, DialOutcome

log = logging.getLogger(__name__)

# About a minute in all: longer than a database takes to fail over.
_PATIENCE_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)

# So often a call without an agent is looked at. LiveKit gives a worker 3 s to take a dispatch
# (psrpc's DefaultClientTimeout); with twelve calls at once on two cores some took over 1.5 s, and
# a dispatch repeated earlier sends a second agent, who throws the first one out.
_LOOK_EVERY_S = 3.5

LIVEKIT_ERRORS = (ServerError, aiohttp.ClientError, TimeoutError)


class Dispatcher:
    """Sends our agents into rooms, each with the token of its call."""

    def __init__(self, livekit: LiveKitAPI, tokens: TokenIssuer, agent_name: str) -> None:
        self._livekit = livekit
        self._tokens = tokens
        self.agent_name = agent_name

    def dispatch(self, call_id: str) -> RoomAgentDispatch:
        """For a room that is created with it."""
        metadata = JobMetadata(call_id=call_id, token=self._tokens.for_call(call_id))
        return RoomAgentDispatch(
            agent_name=self.agent_name, metadata=metadata.model_dump_json(by_alias=True)
        )

    async def send(self, call_id: str, room_name: str) -> None:
        """Into a room that exists. A failure is logged: whether an agent comes is seen later."""
        wanted = self.dispatch(call_id)
        try:
            await self._livekit.agent_dispatch.create_dispatch(
                CreateAgentDispatchRequest(
                    room=room_name, agent_name=wanted.agent_name, metadata=wanted.metadata
                )
            )
        except LIVEKIT_ERRORS:
            log.warning("dispatch failed", extra={"call_id": call_id})

    async def taken(self, room_name: str) -> bool:
        """Whether a worker has taken a dispatch of this room; True, too, if LiveKit does not say.

        One that finds no worker is forgotten by LiveKit: it stays listed, without a job.
        """
        try:
            listed = await self._livekit.agent_dispatch.list_dispatch(room_name)
        except LIVEKIT_ERRORS:
            return True
        ours = (one for one in listed if one.agent_name == self.agent_name)
        return any(one.state.jobs for one in ours)


class Journal:
    """Writes what the gateway itself knows onto timelines."""

    def __init__(self, timeline: Timeline, metrics: Metrics) -> None:
        self._timeline = timeline
        self._metrics = metrics

    async def write(self, call_id: str, type: str, data: dict[str, Any] | None = None) -> None:
        """Raises Unavailable."""
        await self._append(call_id, CallEvent(type=type, data=data or {}))

    async def verdict(self, call_id: str, outcome: DialOutcome) -> None:
        """Only we know it: it waits for a database that is away. Raises Unavailable at last."""
        self._metrics.dialled(outcome)
        event = CallEvent(type="call.answered") if outcome.answered else _ended(outcome)
        for delay_s in _PATIENCE_S:
            try:
                return await self._append(call_id, event)
            except Unavailable:
                log.warning("verdict not written yet", extra={"call_id": call_id})
                await asyncio.sleep(delay_s)
        await self._append(call_id, event)

    async def _append(self, call_id: str, event: CallEvent) -> None:
        stored = await self._timeline.append(call_id, [event], "gateway")
        self._metrics.events.labels("gateway").inc(len(stored or ()))


def _ended(outcome: DialOutcome) -> CallEvent:
    data = ended(
        outcome.status or "failed",
        outcome.reason or "dial_failed",
        sip_status_code=outcome.sip_status_code,
        sip_reason=outcome.sip_reason,
    )
    return CallEvent(type="call.ended", data=data)


class Watch:
    """Waits for events of one call."""

    def __init__(self, call_id: str, store: Store, timeline: Timeline) -> None:
        self._call_id = call_id
        self._store = store
        self._timeline = timeline

    async def seen(self, *types: str) -> bool:
        """Whether one of these is on the timeline. Raises Unavailable (the database)."""
        return bool(await self._store.events(self._call_id, types=types))

    async def until(self, *types: str, timeout_s: float = math.inf) -> bool:
        """True as soon as one of these is on the timeline; False when the time is up.

        A database that is away is asked again.
        """
        clock = asyncio.get_running_loop()
        deadline = clock.time() + timeout_s
        async with self._timeline.listen(self._call_id) as news:
            while (left := deadline - clock.time()) > 0:
                try:
                    if await self.seen(*types):
                        return True
                except Unavailable:
                    # Whoever waits here waits beside a dial, whose verdict must not be lost.
                    log.warning("cannot look for events", extra={"call_id": self._call_id})
                    left = min(left, POLL_S)
                await news.wait(left)
        return await self.seen(*types)


class Arrival:
    """Sees an agent into a call: LiveKit neither queues nor retries a dispatch."""

    def __init__(
        self,
        call_id: str,
        room_name: str,
        *,
        watch: Watch,
        journal: Journal,
        dispatcher: Dispatcher,
        timeout_s: float,
        sign: str = "agent.joined",
    ) -> None:
        """``sign``: the event that tells of the agent."""
        self._sign = sign
        self._call_id = call_id
        self._room_name = room_name
        self._watch = watch
        self._journal = journal
        self._dispatcher = dispatcher
        self._timeout_s = timeout_s

    async def seen(self) -> bool:
        """True when the agent has joined, or the call is over and none is needed.

        The dispatch is repeated as long as no worker takes it, and once, at half time, if the
        one that did has not come. When the time is up the call is written off as
        ``agent_unavailable``, and the far end is the caller's to send away.
        """
        clock = asyncio.get_running_loop()
        deadline = clock.time() + self._timeout_s
        half_time = deadline - self._timeout_s / 2
        pause_s = min(_LOOK_EVERY_S, self._timeout_s / 2)
        hurried = False
        while not await self._joined(min(pause_s, deadline - clock.time())):
            if clock.time() >= deadline:
                return await self._write_off()
            late = not hurried and clock.time() >= half_time
            hurried |= late
            if late or not await self._dispatcher.taken(self._room_name):
                log.warning("agent dispatched again", extra={"call_id": self._call_id})
                await self._dispatcher.send(self._call_id, self._room_name)
        return True

    async def _joined(self, within_s: float) -> bool:
        return await self._watch.until(self._sign, "call.ended", timeout_s=within_s)

    async def _write_off(self) -> bool:
        log.error("no agent joined the call", extra={"call_id": self._call_id})
        await self._journal.write(self._call_id, "call.ended", ended("failed", "agent_unavailable"))
        return False


class Following:
    """One dialled call, until its verdict is written and its agent is there."""

    def __init__(
        self,
        call_id: str,
        room_name: str,
        dial: Dial,
        *,
        store: Store,
        timeline: Timeline,
        journal: Journal,
        dispatcher: Dispatcher | None,
        agent_join_timeout_s: float,
    ) -> None:
        """``dispatcher``: None for a call without an agent."""
        self._call_id = call_id
        self._dial = dial
        self._journal = journal
        self._watch = Watch(call_id, store, timeline)
        self._arrival = (
            None
            if dispatcher is None
            else Arrival(
                call_id,
                room_name,
                watch=self._watch,
                journal=journal,
                dispatcher=dispatcher,
                timeout_s=agent_join_timeout_s,
            )
        )

    async def run(self) -> DialOutcome:
        """The verdict, once it is written down and the agent has come, or is not needed."""
        try:
            async with asyncio.TaskGroup() as group:
                while_it_rings = [
                    group.create_task(self._see_ringing()),
                    group.create_task(self._hang_up_when_over()),
                ]
                if self._arrival is not None:
                    group.create_task(self._await_agent(self._arrival))
                outcome = await self._dial.verdict()
                for task in while_it_rings:
                    task.cancel()
                await self._journal.verdict(self._call_id, outcome)
            if outcome.answered and await self._watch.seen("call.ended"):
                await self._dial.cancel()
            return outcome
        finally:
            await self._dial.aclose()

    async def _see_ringing(self) -> None:
        """No webhook of LiveKit tells of ringing: look, until it rings or is over."""
        while (status := await self._dial.call_status()) == "dialing":  # noqa: ASYNC110 (told by nobody)
            await asyncio.sleep(0.5)
        if status == "ringing":
            try:
                await self._journal.write(self._call_id, "call.ringing")
            except Unavailable:
                log.warning("ringing not written", extra={"call_id": self._call_id})

    async def _hang_up_when_over(self) -> None:
        await self._watch.until("call.ended")
        await self._dial.cancel()

    async def _await_agent(self, arrival: Arrival) -> None:
        if not await arrival.seen():
            await self._dial.cancel()


async def participants(livekit: LiveKitAPI, room_name: str) -> list[ParticipantInfo]:
    """Who is in the room. Raises LIVEKIT_ERRORS."""
    listed = await livekit.room.list_participants(ListParticipantsRequest(room=room_name))
    return list(listed.participants)


async def tidy(livekit: LiveKitAPI, room_name: str) -> None:
    """Delete a room that has nobody but agents in it; otherwise its own time-out will."""
    try:
        present = await participants(livekit, room_name)
        if all(other.kind == ParticipantInfo.Kind.AGENT for other in present):
            await livekit.room.delete_room(DeleteRoomRequest(room=room_name))
    except LIVEKIT_ERRORS:
        log.info("room left to its own time-out", extra={"room": room_name})
