"""Notify this process's listeners of new events of calls.

Events appended here wake their listeners at once, and on PostgreSQL those of all other gateways
(``gateway.store.gateways.bell``). What they do not hear is found by reading the tail of the events
table once a second, whatever the number of listeners (``Tail``).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from core.errors import Unavailable
from core.events import Source, ended
from core.models import CallEvent
from gateway.http.metrics import Metrics
from gateway.store.call_status import Call, StoredEvent
from gateway.store.calls import Store
from gateway.store.database import Scope
from sip.dial import DialOutcome

log = logging.getLogger(__name__)

POLL_S = 1.0

_BACK = 1000
"""Number of the newest events that the first read looks at."""
_MISSING_S = 30.0
"""How long to look for an event whose number was skipped; a statement takes at most 10 s."""

# About a minute in all, which is longer than a database's failover.
_PATIENCE_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


@dataclass(frozen=True, slots=True)
class Look:
    """A call and some of its events, read once for all listeners that asked at that moment."""

    call: Call | None
    events: Sequence[StoredEvent]
    """All events after the one that was asked for, of every type."""
    agent_gone: bool
    """True if the call is over and its agent will not report anything more."""


@dataclass(slots=True)
class _Watched:
    """A call with listeners."""

    bells: set[asyncio.Event] = field(default_factory=set)
    news: int = 0
    """Counts the rings."""
    looks: dict[tuple[int, int], asyncio.Task[Look]] = field(default_factory=dict)
    """Reads in progress, by ``news`` and the event that they start after."""


class Timeline:
    """The store's events with notification: ``append`` wakes the call's ``Listener``s."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tail = Tail(store)
        self._watched: dict[str, _Watched] = {}

    async def append(
        self, call_id: str, events: Sequence[CallEvent], source: Source, *, epoch: int | None = None
    ) -> list[StoredEvent] | None:
        """See Store.append."""
        stored = await self._store.append(call_id, events, source, epoch=epoch)
        if stored:
            self._tail.known(event.seq for event in stored)
            self._ring([call_id])
        return stored

    def listen(self, call_id: str) -> Listener:
        return Listener(self._store, self._watched, call_id)

    def listeners(self, call_id: str) -> int:
        watched = self._watched.get(call_id)
        return len(watched.bells) if watched else 0

    async def run(self, stopping: asyncio.Event, *, poll_s: float = POLL_S) -> None:
        """Poll for other gateways' events; wake all listeners when this gateway begins to stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poll(poll_s))
            group.create_task(self._hear())
            await stopping.wait()
            self._ring(list(self._watched))

    async def _poll(self, every_s: float) -> None:
        while True:
            try:
                self._ring(await self._tail.read())
            except Unavailable:
                log.warning("cannot look for other gateways' events")
            except Exception:
                # This loop must survive: nothing else reports other gateways' events.
                log.exception("looking for other gateways' events failed")
            await asyncio.sleep(every_s)

    async def _hear(self) -> None:
        while True:
            try:
                async with self._store.bell.listening() as calls:
                    async for call_id in calls:
                        self._ring([call_id])
                log.warning("the connection that hears other gateways is lost")
            except Unavailable:
                log.warning("cannot hear other gateways")
            except Exception:
                log.exception("hearing other gateways failed")
            await asyncio.sleep(POLL_S)

    def _ring(self, call_ids: Iterable[str]) -> None:
        for call_id in call_ids:
            if (watched := self._watched.get(call_id)) is not None:
                watched.news += 1
                for bell in watched.bells:
                    bell.set()


class Listener:
    """``async with timeline.listen(id) as news:`` look, ``await news.wait()``, and repeat."""

    def __init__(self, store: Store, everybody: dict[str, _Watched], call_id: str) -> None:
        self._store = store
        self._everybody = everybody
        self._call_id = call_id
        self._bell = asyncio.Event()

    async def __aenter__(self) -> Listener:
        self._watched = self._everybody.setdefault(self._call_id, _Watched())
        self._watched.bells.add(self._bell)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watched.bells.discard(self._bell)
        if not self._watched.bells:
            del self._everybody[self._call_id]

    def ring(self) -> None:
        """Wake this listener only."""
        self._bell.set()

    async def wait(self, timeout: float = math.inf) -> bool:
        """Wait for news or a ``ring``; False on timeout."""
        try:
            async with asyncio.timeout(None if timeout == math.inf else timeout):
                await self._bell.wait()
        except TimeoutError:
            return False
        self._bell.clear()
        return True

    async def look(self, after: int) -> Look:
        """Return the call and its events after ``after``. Raises Unavailable.

        Listeners woken by the same news and asking for the same share one read.
        """
        key = (self._watched.news, after)
        looks = self._watched.looks
        if (task := looks.get(key)) is None:
            task = looks[key] = asyncio.create_task(self._read(after), name="look")
            task.add_done_callback(lambda done: _forget(looks, key, done))
        return await asyncio.shield(task)

    async def _read(self, after: int) -> Look:
        # The call is read before its events, so that they include the one that ended it.
        call = await self._store.call(Scope(None), self._call_id)
        events = await self._store.events(self._call_id, after=after)
        gone = False
        if call is not None and call.ended:
            seen = await self._store.events(
                call.id, types=("agent.joined", "agent.left", "agent.lost")
            )
            # Nothing more comes from an agent that was lost, or only what its worker finds of it.
            gone = not seen or seen[-1].type != "agent.joined"
        return Look(call, events, gone)


def _forget(
    looks: dict[tuple[int, int], asyncio.Task[Look]], key: tuple[int, int], task: asyncio.Task[Look]
) -> None:
    looks.pop(key, None)
    if not task.cancelled():
        task.exception()  # retrieve it: all who waited for it may have left


class _Events(Protocol):
    """The part of gateway.store.calls.Store that ``Tail`` uses."""

    async def newest_event(self) -> int: ...

    async def events_since(self, seq: int, among: Sequence[int]) -> list[tuple[int, str]]: ...


class Tail:
    """Reports each event of any gateway once.

    An event gets its number before its transaction commits, so on PostgreSQL the seventh may
    become visible before the sixth. A skipped number is therefore looked for again until it is too
    old to be committed any more (a rejected duplicate took it).
    """

    def __init__(self, events: _Events, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._last: int | None = None
        self._missing: dict[int, float] = {}
        self._known: set[int] = set()

    def known(self, seqs: Iterable[int]) -> None:
        """Do not report these events."""
        self._known.update(seqs)

    async def read(self) -> set[str]:
        """Return the calls that have events not reported before. Raises Unavailable."""
        if self._last is None:
            self._last = max(0, await self._events.newest_event() - _BACK)
        last, known = self._last, self._known
        found = await self._events.events_since(last, sorted(self._missing))
        now = self._clock()
        seen = {seq for seq, _ in found}
        self._last = max(seen | {last})
        given_out = range(max(last, self._last - _BACK) + 1, self._last)
        self._missing |= dict.fromkeys(given_out, now)
        self._missing = {
            seq: since
            for seq, since in self._missing.items()
            if seq not in seen and now - since < _MISSING_S
        }
        told = {call_id for seq, call_id in found if seq not in known}
        self._known = {seq for seq in known if seq > self._last}
        return told


class Journal:
    """Writes the gateway's own observations to timelines."""

    def __init__(self, timeline: Timeline, metrics: Metrics) -> None:
        self._timeline = timeline
        self._metrics = metrics

    async def write(self, call_id: str, type: str, data: dict[str, Any] | None = None) -> None:
        """Write one event. Raises Unavailable."""
        await self._append(call_id, CallEvent(type=type, data=data or {}))

    async def verdict(self, call_id: str, outcome: DialOutcome) -> None:
        """Write a dial's verdict. Only we know it, so retry a minute; then raise Unavailable."""
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
        await self._timeline.append(call_id, [event], "gateway")


def _ended(outcome: DialOutcome) -> CallEvent:
    data = ended(
        outcome.status or "failed",
        outcome.reason or "dial_failed",
        sip_status_code=outcome.sip_status_code,
        sip_reason=outcome.sip_reason,
        **({} if outcome.problem is None else {"problem": outcome.problem}),
    )
    return CallEvent(type="call.ended", data=data)


class Watch:
    """Waits for events of one call."""

    def __init__(self, call_id: str, store: Store, timeline: Timeline) -> None:
        self._call_id = call_id
        self._store = store
        self._timeline = timeline

    @property
    def facts(self) -> dict[str, str]:
        """Fields for the log."""
        return {"call_id": self._call_id}

    async def seen(self, *types: str) -> bool:
        """Return True if one of these is on the timeline. Raises Unavailable (the database)."""
        return bool(await self._store.events(self._call_id, types=types))

    async def until(self, *types: str, timeout_s: float = math.inf) -> bool:
        """Return True once one of these is on the timeline, False on timeout.

        If the database is down, retry; at the deadline, raise Unavailable.
        """
        clock = asyncio.get_running_loop()
        deadline = clock.time() + timeout_s
        async with self._timeline.listen(self._call_id) as news:
            while (left := deadline - clock.time()) > 0:
                try:
                    if await self.seen(*types):
                        return True
                except Unavailable:
                    # A dial runs beside this wait; raising would lose its verdict.
                    log.warning("cannot look for events", extra=self.facts)
                    left = min(left, POLL_S)
                await news.wait(left)
        return await self.seen(*types)
