"""Letting ended calls go: a room's native half, half a megabyte, is freed with its Python half.

The handlers of a room and the call refer to each other, as do cancelled tasks and those who waited
for them. Python looks for such circles by the number of its own objects, which here is after
hundreds of calls.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

# What the SDK still does for a room that was just left has come to its end by then.
AFTER_S: Final = 5.0


def settle() -> None:
    """Keep all that was loaded so far out of every later search: one then takes a few ms."""
    gc.collect()
    gc.freeze()


class Sweeper:
    """Searches once, ``AFTER_S`` after calls began to end."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def soon(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(AFTER_S, self._sweep)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        self._timer = None
        gc.collect()
