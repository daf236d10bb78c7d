"""Garbage collection of ended calls: a room's native half (0.5 MB) is freed with its Python half.

The handlers of a room and the call form a reference cycle, as do cancelled tasks and their
waiters. Python's collector runs by the number of Python objects, which here means after hundreds
of calls.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

# By then the SDK has finished its work for a room that was left.
AFTER_S: Final = 5.0


def settle() -> None:
    """Exclude all objects so far from later collections: each then takes a few ms."""
    gc.collect()
    gc.freeze()


class Sweeper:
    """Collects ``after_s`` after a call has ended, once for all that end in that time."""

    def __init__(self, *, after_s: float = AFTER_S) -> None:
        self._after_s = after_s
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def soon(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._sweep)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        self._timer = None
        gc.collect()
