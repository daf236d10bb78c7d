"""Notices that the process stood still: it was frozen, or something blocked its event loop.

Other agents may have taken over its sessions meanwhile. Those of the sessions that learn so from
the gateway end; until then, none may do what a caller or a tenant's server would notice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

_EVERY_S = 0.25
STOOD_STILL_S = 1.5
"""Gateways send for another agent after 2 s (gateway.http.pace)."""


class Standstill:
    """``on_woke`` gets the seconds for which the event loop stood still."""

    def __init__(self, on_woke: Callable[[float], None]) -> None:
        self._on_woke = on_woke
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._due = self._loop.time() + _EVERY_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """Look now: what runs first after a standstill need not be this timer."""
        late_s = self._loop.time() - self._due
        if self._timer is not None and late_s >= STOOD_STILL_S:
            self._due = self._loop.time()
            log.warning("the process stood still", extra={"seconds": round(late_s, 1)})
            self._on_woke(late_s)

    def _tick(self) -> None:
        self.look()
        self.start()
