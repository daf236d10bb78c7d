"""One timer for all streams: it visits each of them every 20 ms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FRAME_MS = 20
FRAME_S = FRAME_MS / 1000
_SLOTS = 4

Visit = Callable[[float], None]
"""It is called with the loop's time, in seconds."""


class FrameClock:
    """Says how many frames of 20 ms are due, on a clock that runs ``drift_ppm`` too fast."""

    def __init__(self, drift_ppm: float) -> None:
        self._frame_s = FRAME_S / (1 + drift_ppm / 1e6)
        self._began_at: float | None = None
        self._frames = 0

    def due(self, now: float) -> int:
        """Return the frames that became due since the last question; ``now`` in seconds."""
        if self._began_at is None:
            # Half a frame early, so that a timer that is early or late by less changes nothing.
            self._began_at = now - self._frame_s / 2
        frames = int((now - self._began_at) / self._frame_s)
        due = max(0, frames - self._frames)
        self._frames += due
        return due


class Ticker:
    """Streams are spread over four slots of 5 ms, so that not all of them send at once.

    A visit may be late, and after a stall of the process some are left out: a visitor computes
    from the clock what is due.
    """

    def __init__(self) -> None:
        self._slots: list[list[Visit]] = [[] for _ in range(_SLOTS)]
        self._some = asyncio.Event()

    def add(self, visit: Visit) -> None:
        min(self._slots, key=len).append(visit)
        self._some.set()

    def remove(self, visit: Visit) -> None:
        for slot in self._slots:
            if visit in slot:
                slot.remove(visit)
        if not any(self._slots):
            self._some.clear()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        turn, due = 0, 0.0
        while True:
            await self._some.wait()
            # The next slot that has visitors.
            steps = next(n for n in range(1, _SLOTS + 1) if self._slots[(turn + n) % _SLOTS])
            turn = (turn + steps) % _SLOTS
            now = loop.time()
            due = due + steps * FRAME_S / _SLOTS if now - due < FRAME_S else now
            await asyncio.sleep(max(0.0, due - now))
            for visit in tuple(self._slots[turn]):
                visit(loop.time())
