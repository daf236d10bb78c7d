"""Finish the records of sessions that nobody serves any more.

A gateway may be killed between a session's token and its socket, a stream worker with all its
sessions. The reconciler runs at the start and every minute, apart from that of rooms
(gateway.calls.reconciler): a session needs no LiveKit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from core.errors import AppError
from core.events import ended
from core.models import CallEvent, now
from gateway.calls.streams.sessions import place_of
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
_NOBODY_CAME: Final = ended("canceled", "canceled", note="nobody came")
_LOST: Final = ended("failed", "agent_error", note="its worker is gone")


class StreamReconciler:
    def __init__(
        self,
        *,
        store: Store,
        sessions: SessionStore,
        workers: StreamWorkers,
        timeline: Timeline,
        clock: Callable[[], datetime] = now,
        second_look_s: float = 5.0,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._workers = workers
        self._timeline = timeline
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
        for call_id, data in (await self._suspects() if suspects else {}).items():
            if suspects.get(call_id) == data:
                log.warning(
                    "finished a session nobody served",
                    extra={"call_id": call_id, "finding": data["note"]},
                )
                over = CallEvent(type="call.ended", data=data)
                await self._timeline.append(call_id, [over], "reconciler")
                finished += 1
        await self._sessions.sweep()
        return finished

    async def _suspects(self) -> dict[str, dict[str, Any]]:
        """Return the sessions that look left behind, and how their calls have ended then."""
        found = {}
        live = {worker.worker_id for worker in await self._workers.live()}
        for call in await self._store.unfinished_calls(created_before=self._clock() - _SETTLED):
            if call.type == "stream":
                with _logged(call.id):
                    if data := await self._finding(call, live):
                        found[call.id] = data
        return found

    async def _finding(self, call: Call, live: set[str]) -> dict[str, Any] | None:
        session = await self._sessions.find(call.id)
        if session is None and call.direction == "outbound":
            return None  # it rings, and its task follows it (gateway.calls.tasks)
        place = place_of(session) if session is not None else None
        if place is None:
            until = session.token_until if session is not None else None
            until = until or call.created_at + TOKEN_TTL
            return _NOBODY_CAME if until + _SETTLED < self._clock() else None
        try:
            return None if await self._workers.has(place, call.id) else _LOST
        except Refused:
            # It may only be unreachable from here, and its calls go on.
            return None if place.worker_id in live else _LOST


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
