"""Notices that the process stood still: it was frozen, or something blocked its event loop.

Other agents may have taken over its calls meanwhile. Those of its agents that learn so from the
gateway leave; until then, none may do what a caller or a tenant's server would notice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

_EVERY_S = 0.25
STOOD_STILL_S = 1.5
"""Gateways send for another agent after 2 s (gateway.http.pace)."""


class Standstill:
    """Looks from ``start`` to ``stop``, by timers: no cancellation of tasks stops it."""

    def __init__(self) -> None:
        self._woken: set[Callable[[float], None]] = set()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + _EVERY_S
        self._timer = loop.call_at(self._due, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @contextmanager
    def tells(self, on_woke: Callable[[float], None]) -> Iterator[None]:
        """Let ``on_woke`` get the seconds for which the event loop stood still."""
        self._woken.add(on_woke)
        try:
            yield
        finally:
            self._woken.discard(on_woke)

    def look(self) -> None:
        """Look now: what runs first after a standstill need not be this timer."""
        if self._timer is None:
            return
        now = asyncio.get_running_loop().time()
        late_s = now - self._due
        if late_s >= STOOD_STILL_S:
            self._due = now
            log.warning("the process stood still", extra={"seconds": round(late_s, 1)})
            for on_woke in [*self._woken]:
                on_woke(late_s)

    def _tick(self) -> None:
        self.look()
        self.start()
