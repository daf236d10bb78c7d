"""One timer for all streams: it visits each of them every 20 ms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FRAME_MS = 20
FRAME_S = FRAME_MS / 1000
_SLOTS = 4

Visit = Callable[[float], None]
"""It is called with the loop's time, in seconds."""


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
        step, turn, due = FRAME_S / _SLOTS, 0, 0.0
        while True:
            await self._some.wait()
            now = loop.time()
            due = due + step if now - due < FRAME_S else now
            await asyncio.sleep(max(0.0, due - now))
            for visit in tuple(self._slots[turn]):
                visit(loop.time())
            turn = (turn + 1) % _SLOTS
