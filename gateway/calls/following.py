"""What happens to a call between its dial and its conversation, and how it is written down.

One ``Following`` per dialled call waits for the far end's verdict and for the
agent. Whatever says that the call is over ends the dial, too: nobody's phone is
left ringing for a call that has no other side any more.
"""

from __future__ import annotations

import asyncio
import logging

from core.errors import Unavailable
from core.events import ended
from gateway.calls.dispatcher import Dispatcher
from gateway.calls.timeline import Journal, Timeline, Watch
from gateway.store.calls import Store
from sip.dial import Dial, DialOutcome

log = logging.getLogger(__name__)

# So often a call without an agent is looked at. LiveKit gives a worker 3 s to take a dispatch
# (psrpc's DefaultClientTimeout); with twelve calls at once on two cores some took over 1.5 s, and
# a dispatch repeated earlier sends a second agent, who throws the first one out.
_LOOK_EVERY_S = 3.5


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
