"""The servers' events with their times: the document of ``GET /control/log``."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

Entry: TypeAlias = dict[str, Any]


class Record:
    """The last entries, oldest first; each has ``seq``, ``at`` (Unix s), ``provider``, ``event``.

    It never contains a key or audio.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self._sequence = itertools.count(1)
        self._added = asyncio.Event()

    def add(self, provider: str, event: str, **facts: Any) -> None:
        """Append an entry; facts that are None are left out, floats are rounded to 0.01."""
        kept = {
            name: round(value, 2) if isinstance(value, float) else value
            for name, value in facts.items()
            if value is not None
        }
        self._entries.append(
            {
                "seq": next(self._sequence),
                "at": round(time.time(), 4),
                "provider": provider,
                "event": event,
                **kept,
            }
        )
        self._added.set()
        self._added = asyncio.Event()

    def entries(self, since: int = 0, provider: str | None = None) -> list[Entry]:
        """Return the entries after sequence number ``since``."""
        return [
            entry
            for entry in self._entries
            if entry["seq"] > since and provider in (None, entry["provider"])
        ]

    async def wait_for(self, wanted: Callable[[Entry], bool], timeout: float) -> Entry:
        """Wait for a matching entry; past ones count. Raise TimeoutError after ``timeout`` s."""
        async with asyncio.timeout(timeout):
            while True:
                added = self._added
                for entry in self._entries:
                    if wanted(entry):
                        return entry
                await added.wait()
