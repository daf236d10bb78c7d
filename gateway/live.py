"""Wakes whoever waits for news of a call in this process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from core.events import Source
from core.models import CallEvent, StoredEvent
from core.store import Store

# Another gateway may have written the news: look without being woken, too.
POLL_S = 1.0


class Timeline:
    """The store's events with a bell: ``append`` rings it, ``wait`` hears it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bells: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def append(
        self, call_id: str, events: Sequence[CallEvent], source: Source
    ) -> list[StoredEvent] | None:
        """See Store.append."""
        stored = await self._store.append(call_id, events, source)
        if stored:
            for bell in self._bells.get(call_id, ()):
                bell.set()
        return stored

    def listen(self, call_id: str) -> Listener:
        return Listener(self._bells, call_id)


class Listener:
    """``async with timeline.listen(id) as news: await news.wait()``"""

    def __init__(self, bells: defaultdict[str, set[asyncio.Event]], call_id: str) -> None:
        self._bells = bells
        self._call_id = call_id
        self._bell = asyncio.Event()

    async def __aenter__(self) -> Listener:
        self._bells[self._call_id].add(self._bell)
        return self

    async def __aexit__(self, *_: object) -> None:
        bells = self._bells[self._call_id]
        bells.discard(self._bell)
        if not bells:
            del self._bells[self._call_id]

    async def wait(self, timeout: float = POLL_S) -> None:
        """Until something was appended here, or the time is up."""
        try:
            async with asyncio.timeout(timeout):
                await self._bell.wait()
        except TimeoutError:
            return
        finally:
            self._bell.clear()
