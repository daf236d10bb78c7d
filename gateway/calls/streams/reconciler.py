"""Finish the records of sessions that nobody serves any more.

A gateway may be killed between a session's token and its socket, a stream worker with all its
sessions while their clients are away. An agent that is gone is reported lost first: if its client
comes back, or is still there, another agent takes over. The reconciler runs at the start and every
minute, apart from that of rooms (gateway.calls.reconciler): a session needs no LiveKit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from core.errors import AppError
from core.events import ended
from core.models import CallEvent, now
from core.recovery import Lost
from core.streams.messages import GRACE_S
from gateway.calls.streams.agents import ReportLost, place_of
from gateway.calls.streams.tokens import TOKEN_TTL
from gateway.calls.streams.workers import Refused, StreamWorkers
from gateway.calls.timeline import Timeline
from gateway.store.call_status import Call
from gateway.store.calls import Store
from gateway.store.streams.sessions import SessionStore

log = logging.getLogger(__name__)

PERIOD_S: Final = 60.0
# A socket may be on its way to its worker.
_SETTLED: Final = timedelta(seconds=20)
_FOUND_A_WORKER: Final = TOKEN_TTL + timedelta(minutes=2)
"""From a client's session's creation, if all went well."""
_NOBODY_CAME: Final = ended("canceled", "canceled", note="nobody came")
_LOST: Final = ended("failed", "agent_error", note="its worker is gone")

_Finding: TypeAlias = dict[str, Any] | int
"""How the call has ended; or the epoch of an agent that is lost."""


class StreamReconciler:
    def __init__(
        self,
        *,
        store: Store,
        sessions: SessionStore,
        workers: StreamWorkers,
        timeline: Timeline,
        lost: ReportLost,
        comes_within_s: float,
        clock: Callable[[], datetime] = now,
        second_look_s: float = 5.0,
    ) -> None:
        """``comes_within_s``: how long a relay looks for the next agent."""
        self._store = store
        self._sessions = sessions
        self._workers = workers
        self._timeline = timeline
        self._lost = lost
        self._without_agent = timedelta(seconds=GRACE_S + comes_within_s) + _SETTLED
        self._clock = clock
        self._second_look_s = second_look_s

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Run until cancelled. Failures are logged and retried in the next round."""
        while True:
            with _logged():
                await self.round()
            await asyncio.sleep(period_s)

    async def round(self) -> int:
        """Check every unfinished session twice; return how many were finished here.

        A worker's last events, or its heartbeat, may be on their way at the first look.
        """
        suspects = await self._suspects()
        if suspects:
            await asyncio.sleep(self._second_look_s)
        finished = 0
        for call_id, found in (await self._suspects() if suspects else {}).items():
            if suspects.get(call_id) == found:
                with _logged(call_id):
                    finished += await self._settle(call_id, found)
        await self._sessions.sweep()
        return finished

    async def _settle(self, call_id: str, found: _Finding) -> bool:
        """Report the loss, or end the call; return whether it was ended."""
        if isinstance(found, int):
            seen_at = now()  # it is not known when
            await self._lost(call_id, found, Lost(why="vanished", seen_at=seen_at))
            return False
        facts = {"call_id": call_id, "finding": found["note"]}
        log.warning("finished a session nobody served", extra=facts)
        over = CallEvent(type="call.ended", data=found)
        await self._timeline.append(call_id, [over], "reconciler")
        return True

    async def _suspects(self) -> dict[str, _Finding]:
        """Return the sessions that look left behind."""
        found: dict[str, _Finding] = {}
        live = {worker.worker_id for worker in await self._workers.live()}
        for call in await self._store.unfinished_calls(created_before=self._clock() - _SETTLED):
            if call.type == "stream":
                with _logged(call.id):
                    if (finding := await self._finding(call, live)) is not None:
                        found[call.id] = finding
        return found

    async def _finding(self, call: Call, live: set[str]) -> _Finding | None:
        session = await self._sessions.find(call.id)
        if session is None and call.direction == "outbound":
            return None  # it rings, and its task follows it (gateway.calls.tasks)
        place = place_of(session) if session is not None else None
        if place is None:
            until = session.token_until if session is not None else None
            until = until or call.created_at + TOKEN_TTL
            if call.direction == "web":
                # Its token for coming back is made before a worker has the session.
                until = min(until, call.created_at + _FOUND_A_WORKER)
            return _NOBODY_CAME if until + _SETTLED < self._clock() else None
        assert session is not None
        if session.agent_epoch < call.agent_epoch:
            return _LOST if await self._left_behind(call) else None
        try:
            there = await self._workers.has(place, call.id, session.agent_epoch)
        except Refused:
            # It may only be unreachable from here, and its calls go on.
            there = place.worker_id in live
        return None if there else session.agent_epoch

    async def _left_behind(self, call: Call) -> bool:
        """Return True if no relay looks for the next agent any more, and no client comes back."""
        lost = await self._store.events(call.id, types=["agent.lost"])
        return not lost or lost[-1].at + self._without_agent < self._clock()


@contextlib.contextmanager
def _logged(call_id: str | None = None) -> Iterator[None]:
    """Log an error, so that the others are looked at, and the next round comes."""
    facts = {} if call_id is None else {"call_id": call_id}
    try:
        yield
    except AppError as error:
        log.warning("reconciling sessions failed", extra={**facts, "problem": error.code})
    except Exception:
        log.exception("reconciling sessions failed", extra=facts)
