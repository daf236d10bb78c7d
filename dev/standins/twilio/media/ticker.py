"""One timer for all streams whose clock is right: it visits each of them every 20 ms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FRAME_MS = 20
FRAME_S = FRAME_MS / 1000
_SLOTS = 4

Visit = Callable[[float], None]
"""It is called with the loop's time, in seconds."""


def frame_s(drift_ppm: float) -> float:
    """Return how long a frame takes on a clock that runs ``drift_ppm`` too fast."""
    return FRAME_S / (1 + drift_ppm / 1e6)


class FrameClock:
    """Says how many frames of 20 ms are due, on a clock that runs ``drift_ppm`` too fast."""

    def __init__(self, drift_ppm: float) -> None:
        self._frame_s = frame_s(drift_ppm)
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


def next_visit(due: float, now: float, period_s: float) -> float:
    """Return ``due`` later by the whole periods that were missed in a stall until ``now``."""
    return due + max(0.0, now - due) // period_s * period_s


class Ticker:
    """Visits streams every ``period_s``, in four slots, so that not all of them send at once.

    A visit may be late, and after a stall of the process some are left out: a visitor computes
    from the clock what is due. The next ones come when they would have come without the stall.
    """

    def __init__(self, period_s: float = FRAME_S) -> None:
        self._period_s = period_s
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
        turn, due = 0, loop.time()
        while True:
            await self._some.wait()
            # The next slot that has visitors.
            steps = next(n for n in range(1, _SLOTS + 1) if self._slots[(turn + n) % _SLOTS])
            turn = (turn + steps) % _SLOTS
            due = next_visit(due, loop.time(), self._period_s) + steps * self._period_s / _SLOTS
            await asyncio.sleep(max(0.0, due - loop.time()))
            for visit in tuple(self._slots[turn]):
                visit(loop.time())
