"""The end of the table of events, read for all who wait for news of any call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

_BACK = 1000
"""So many of the newest events are looked at when the first look is taken …"""
_MISSING_S = 30.0
"""… and so long one is waited for whose number is given out; a statement takes at most 10 s."""


class Events(Protocol):
    """What is asked of gateway.store.calls.Store."""

    async def newest_event(self) -> int: ...

    async def events_since(self, seq: int, among: Sequence[int]) -> list[tuple[int, str]]: ...


class Tail:
    """Tells each event of whichever gateway once.

    An event has its number before its transaction is committed, so on PostgreSQL the seventh may
    be seen before the sixth. A number that is left out is therefore looked for again, until it is
    so old that nobody can still be about to commit it (a duplicate took it, and was not kept).
    """

    def __init__(self, events: Events, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._last: int | None = None
        self._missing: dict[int, float] = {}
        self._known: set[int] = set()

    def known(self, seqs: Iterable[int]) -> None:
        """These need not be told."""
        self._known.update(seqs)

    async def read(self) -> set[str]:
        """The calls that have events not told of before. Raises Unavailable."""
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
