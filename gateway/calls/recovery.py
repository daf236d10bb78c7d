"""Replace an agent that is lost in a call.

Losses are reported by the agent itself (it stops, or failed), by its worker (its process died or
hung), by the relay of a stream (its worker does not answer), or found here: a worker whose
heartbeats have stopped. Whoever appends ``agent.lost`` of the present epoch sends for the next
agent; everybody else finds it done. In a room the next agent has the identity of the former one,
which LiveKit removes when it joins, so there are never two.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from livekit.api import LiveKitAPI

from core.errors import Unavailable
from core.events import ended
from core.jobs import agent_identity
from core.models import CallEvent, now
from core.recovery import MOST_LOST, Lost
from core.shapes import rfc3339
from gateway.calls.dispatcher import Dispatcher
from gateway.calls.handover import is_transferred
from gateway.calls.livekit import send_away_or_log
from gateway.calls.timeline import Timeline
from gateway.store.call_status import Call
from gateway.store.calls import Store
from gateway.store.database import Scope

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_SEND_EVERY_S = 3.5  # see gateway.calls.dispatcher
_HURDLE_S = 2.0
"""A look that took longer: heartbeats were delayed, too."""


class Recovery:
    """``run`` finds silent workers; ``aclose`` leaves what is under way to the other gateways."""

    def __init__(
        self,
        *,
        livekit: LiveKitAPI,
        store: Store,
        timeline: Timeline,
        dispatcher: Dispatcher,
        silent_s: float,
        within_s: float,
    ) -> None:
        """``silent_s``: without a heartbeat, a worker's agents are lost. ``within_s``: how long to
        look for another one."""
        self._livekit = livekit
        self._store = store
        self._timeline = timeline
        self._dispatcher = dispatcher
        self._silent_s = silent_s
        self._within_s = within_s
        self._tasks: dict[asyncio.Task[None], str] = {}

    def follows(self, call_id: str) -> bool:
        """Return True while this process sends for an agent of the call."""
        return call_id in self._tasks.values()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def lost(self, call_id: str, epoch: int, lost: Lost) -> bool:
        """Take a report that the agent of this epoch is lost. Raises Unavailable.

        True: another agent is or was sent for. False: the call is over, or ends now.
        """
        call = await self._store.call(Scope(None), call_id)
        if call is None or call.ended or await is_transferred(self._store, call_id):
            return False
        if call.agent_epoch > epoch:
            return True
        data = {"epoch": epoch, "why": lost.why, "seenAt": rfc3339(lost.seen_at)}
        if lost.detail:
            data["detail"] = lost.detail
        event = CallEvent(id=f"{call_id}_lost_{epoch}", type="agent.lost", data=data)
        stored = await self._timeline.append(call_id, [event], "gateway")
        if not stored:
            return True  # somebody else was faster
        log.warning("an agent is lost", extra={"call_id": call_id, **data})
        if epoch >= MOST_LOST:
            await self._end(call, "agents were lost too often")
            return False
        if call.type != "stream":  # a session's relay attaches it to another worker
            self._spawn(call, epoch + 1)
        return True

    async def run(self) -> None:
        """Look for silent workers until cancelled.

        Heartbeats arrive here or at another gateway, and by way of the database. After a time
        without either, all workers would seem silent: they get the time to be heard again.
        """
        clock = asyncio.get_running_loop().time
        trusted_from = clock() + 2 * self._silent_s
        while True:
            began = clock()
            try:
                if began >= trusted_from:
                    await self._look()
                else:
                    await self._store.workers()
            except Unavailable:
                trusted_from = clock() + 2 * self._silent_s
            except Exception:
                log.exception("looking for silent workers failed")
            if clock() - began > _HURDLE_S:
                trusted_from = clock() + 2 * self._silent_s
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        silent = now() - timedelta(seconds=self._silent_s)
        for call, seen_at in await self._store.calls_of_silent_workers(silent):
            await self.lost(call.id, call.agent_epoch, Lost(why="vanished", seen_at=seen_at))

    def _spawn(self, call: Call, epoch: int) -> None:
        task = asyncio.create_task(self._replace(call, epoch), name=f"recovery {call.id}")
        self._tasks[task] = call.id
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        call_id = self._tasks.pop(task)
        if not task.cancelled() and task.exception():
            log.error(
                "replacing an agent failed", exc_info=task.exception(), extra={"call_id": call_id}
            )

    async def _replace(self, call: Call, epoch: int) -> None:
        """Send for the agent of this epoch until it has joined; else end the call."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._within_s
        name = call.room_name if call.direction == "inbound" else call.id
        while clock() < deadline:
            await self._dispatcher.send(call.id, call.room_name, epoch, agent_identity(name))
            if await self._came(call.id, epoch, min(_SEND_EVERY_S, deadline - clock())):
                return
        await self._end(call, "no agent took over")

    async def _came(self, call_id: str, epoch: int, within_s: float) -> bool:
        """Return True once that agent or a later one has joined, or the call has ended."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + within_s
        async with self._timeline.listen(call_id) as news:
            while True:
                try:
                    call = await self._store.call(Scope(None), call_id)
                    if call is None or call.ended or call.agent_epoch > epoch:
                        return True
                    if call.agent_worker is not None:
                        return True
                except Unavailable:
                    log.warning("cannot look for an agent", extra={"call_id": call_id})
                left = deadline - clock()
                if left <= 0:
                    return False
                await news.wait(min(left, 1.0))

    async def _end(self, call: Call, note: str) -> None:
        log.error("a call without an agent ends", extra={"call_id": call.id, "note": note})
        over = CallEvent(type="call.ended", data=ended("failed", "agent_error", note=note))
        await self._timeline.append(call.id, [over], "gateway")
        if call.type != "stream":
            await send_away_or_log(self._livekit, call.room_name, call.participant_identity)
