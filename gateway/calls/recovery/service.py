"""Replace an agent that is lost in a call.

Losses are reported by the agent itself (it stops, or failed), by its worker (its process died or
hung), by the relay of a stream (its worker does not answer), or found here: a worker whose
heartbeats have stopped, or whose connection broke, and whose agent does not respond to LiveKit
either. Whoever appends ``agent.lost`` of the present epoch sends for the next agent; everybody else
finds it done. In a room the next agent has the identity of the former one, which is removed before,
so there are never two. A gateway that dies meanwhile is replaced by any other one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from livekit.api import LiveKitAPI
from livekit.protocol.room import RoomParticipantIdentity

from core.errors import Unavailable
from core.events import ended
from core.jobs import agent_identity
from core.models import CallEvent, now
from core.recovery import Lost
from core.shapes import rfc3339
from core.tasks.owned import Owned
from gateway.calls.dispatcher import Dispatcher
from gateway.calls.handover import is_transferred
from gateway.calls.livekit import send_away_or_log
from gateway.calls.recovery.connections import Connections
from gateway.calls.recovery.recovered import crashes, is_hopeless
from gateway.calls.recovery.silence import Silence
from gateway.calls.recovery.successor import Successor, sending
from gateway.calls.timeline import Timeline
from gateway.http.metrics import Metrics, Unrecovered
from gateway.store.call_status import Call
from gateway.store.calls import Store
from gateway.store.database import Scope
from gateway.store.lost.agents_at_work import AgentsAtWork, Beat
from sip.ping import responds

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 0.3
_PING_S: Final = 1.0
_SHORT_PING_S: Final = 0.5
"""If the worker's connection broke: most likely the process is gone."""
_PINGS: Final = 2
# Longer than an agent takes to join, as a rule; a successor that nobody sends for waits this long.
_ADOPT_AFTER_S: Final = 2.0

_POISON: Final = "agents were lost too often"
_NOBODY: Final = "no agent took over"

Alive = Callable[[Call, Beat], Awaitable[bool | None]]
"""Whether the call's agent is alive; None: not known."""


class Recovery:
    """``run`` finds silent workers; ``aclose`` leaves what is under way to the other gateways."""

    def __init__(
        self,
        *,
        livekit: LiveKitAPI,
        store: Store,
        at_work: AgentsAtWork,
        timeline: Timeline,
        dispatcher: Dispatcher,
        metrics: Metrics,
        silent_s: float,
        within_s: float,
        stream_alive: Alive | None = None,
    ) -> None:
        """``silent_s``: without a heartbeat for so long, a worker's agents are lost, unless they
        respond. ``within_s``: how long to look for another one. ``stream_alive``: asks a stream's
        worker; without it streams are left to their relays."""
        self._livekit = livekit
        self._store = store
        self._at_work = at_work
        self._timeline = timeline
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._within_s = within_s
        self._stream_alive = stream_alive
        self.connections = Connections()
        # The pings take the rest of the time.
        self._silence = Silence(silent_s - _PINGS * _PING_S)
        self._tasks = Owned("replacing an agent")
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._without: dict[tuple[str, int], float] = {}
        self._adopted: set[tuple[str, int]] = set()

    def follows(self, call_id: str) -> bool:
        """Return True while this process sends for an agent of the call."""
        return call_id in self._tasks

    async def aclose(self) -> None:
        asking = [*self._asking.values()]
        for task in asking:
            task.cancel()
        await asyncio.gather(self._tasks.aclose(), *asking, return_exceptions=True)

    # --- reports

    async def lost(self, call_id: str, epoch: int, lost: Lost) -> bool | None:
        """Take a report that the agent of this epoch is lost. Raises Unavailable.

        True: the call goes on without that agent, or is over already. False: it ends now. None:
        there is no such call.
        """
        call = await self._store.call(Scope(None), call_id)
        if call is None:
            return None
        # After a handover, an agent that still records is not replaced: nobody talks to it.
        if call.ended or call.agent_epoch != epoch or await is_transferred(self._store, call_id):
            return True
        before = await self._store.events(call_id, types=["agent.lost"])
        seen_at = rfc3339(min(lost.seen_at, now()))
        data = {"epoch": epoch, "why": lost.why, "seenAt": seen_at}
        if lost.detail:
            data["detail"] = lost.detail
        event = CallEvent(id=f"{call_id}_lost_{epoch}", type="agent.lost", data=data)
        hopeless = is_hopeless(epoch, crashes([*before, event]))
        # A session's relay attaches it to another worker.
        more = [] if hopeless or call.type == "stream" else [sending(call_id, epoch + 1, 0)]
        stored = await self._timeline.append(call_id, [event, *more], "gateway")
        if event.id not in {one.id for one in stored or ()}:
            return True  # somebody else was faster
        log.warning("an agent is lost", extra={"call_id": call_id, **data})
        self._metrics.agent_lost(lost.why)
        if hopeless:
            self._tasks.begin(call_id, self._end(call, epoch + 1, "poison", note=_POISON))
            return False
        if call.type != "stream":
            self._tasks.begin(call_id, self._replace(call, epoch + 1, first=True))
        return True

    async def missed(self, call: Call) -> bool:
        """Take it that the call's agent is not in the room. Raises Unavailable.

        True: it should be, and another one is or was sent for. False: it has left by itself, or
        has never joined.
        """
        told = await self._store.events(call.id, types=["agent.joined", "agent.left"])
        last = told[-1] if told else None
        if last is None or (
            last.type == "agent.left" and last.data.get("cause") != "agent_replaced"
        ):
            return False
        heard = [e.at for e in await self._store.events(call.id) if e.source == "worker"]
        lost = Lost(why="vanished", seen_at=max(heard, default=now()), detail="not in the room")
        return bool(await self.lost(call.id, call.agent_epoch, lost))

    # --- what nobody reports

    async def run(self) -> None:
        """Look for silent workers, and for calls left without an agent, until cancelled."""
        while True:
            try:
                await self._look()
            except Unavailable:
                log.warning("cannot look for lost agents")
            except Exception:
                log.exception("looking for lost agents failed")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        clock = asyncio.get_running_loop().time
        beats = await self._at_work.beats()
        seen = {worker: beat.seen_at for worker, beat in beats.items()}
        silent, broken = self._silence.look(seen, clock()), self.connections.broken() & seen.keys()
        if doubted := {*silent, *broken}:
            for call in await self._at_work.calls_of([*doubted]):
                worker = call.agent_worker
                if worker in beats and call.id not in self._asking:
                    ping_s = _SHORT_PING_S if worker in broken else _PING_S
                    self._ask(call, beats[worker], ping_s)
        await self._adopt(clock())

    def _ask(self, call: Call, beat: Beat, ping_s: float) -> None:
        task = asyncio.create_task(self._doubted(call, beat, ping_s), name=f"ping {call.id}")
        self._asking[call.id] = task
        task.add_done_callback(lambda _: self._asking.pop(call.id))

    async def _doubted(self, call: Call, beat: Beat, ping_s: float) -> None:
        """Report the agent as lost unless it responds, or its worker is heard again."""
        clock = asyncio.get_running_loop().time
        for _ in range(_PINGS):
            asked_at = clock()
            if await self._alive(call, beat, ping_s) is not False:
                # It cannot reach a gateway, or its main process hangs. The conversation goes on.
                return await asyncio.sleep(_PING_S)
            await asyncio.sleep(max(0.0, asked_at + ping_s - clock()))
        try:
            beats = await self._at_work.beats()
            if call.agent_worker in beats and beats[call.agent_worker] == beat:
                lost = Lost(why="vanished", seen_at=beat.seen_at or now())
                await self.lost(call.id, call.agent_epoch, lost)
        except Unavailable:
            log.warning("cannot replace an agent yet", extra={"call_id": call.id})

    async def _alive(self, call: Call, beat: Beat, within_s: float) -> bool | None:
        if call.type == "stream":
            return None if self._stream_alive is None else await self._stream_alive(call, beat)
        whom = RoomParticipantIdentity(room=call.room_name, identity=_identity(call))
        return await responds(self._livekit, whom, within_s)

    async def _adopt(self, moment: float) -> None:
        """Send for agents that a gateway which died has left unsent."""
        found = {
            (call.id, call.agent_epoch): call
            for call in await self._at_work.without()
            if call.type != "stream"
        }
        self._without = {key: self._without.get(key, moment) for key in found}
        self._adopted &= found.keys()
        for key, call in found.items():
            waited_s = moment - self._without[key]
            if waited_s < _ADOPT_AFTER_S or key in self._adopted or self.follows(call.id):
                continue
            self._adopted.add(key)
            self._tasks.begin(call.id, self._replace(call, call.agent_epoch, first=False))

    # --- sending for the next one

    async def _replace(self, call: Call, epoch: int, *, first: bool) -> None:
        successor = Successor(
            call,
            epoch,
            _identity(call),
            store=self._store,
            timeline=self._timeline,
            dispatcher=self._dispatcher,
            within_s=self._within_s,
        )
        try:
            if not await successor.comes(first=first):
                await self._end(call, epoch, "nobody", note=_NOBODY, detail=successor.note)
        except BaseException:
            self._adopted.discard((call.id, epoch))  # it is tried again
            raise

    async def _end(self, call: Call, epoch: int, why: Unrecovered, **facts: Any) -> None:
        """End the call, and hang up, unless the agent of this epoch has come or was lost, too.

        Raises Unavailable.
        """
        call = await self._store.call(Scope(None), call.id) or call
        if call.ended or call.agent_worker is not None:
            return
        answered = call.answered_at is not None
        data = ended("failed", "agent_error" if answered else "agent_unavailable", **facts)
        over = CallEvent(id=f"{call.id}_unrecovered", type="call.ended", data=data)
        # Not if another loss was stored meanwhile: the next agent is sent for.
        if not await self._timeline.append(call.id, [over], "gateway", epoch=epoch):
            return
        log.error("a call without an agent ends", extra={"call_id": call.id, **facts})
        self._metrics.unrecovered(why)
        if call.type != "stream":
            await send_away_or_log(self._livekit, call.room_name, call.participant_identity)


def _identity(call: Call) -> str:
    """Return the identity of the call's agents in its room."""
    return agent_identity(call.room_name if call.direction == "inbound" else call.id)
