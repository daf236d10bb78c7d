"""A probe for whether the database takes writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from core.errors import AppError
from gateway.store.database import Database

_CHECK_DEADLINE_S = 2.0
# All requests within this time share one write, so that probes do not load the database.
_PROBE_EVERY_S = 2.0


class WriteProbe:
    """Checks by writing whether the database takes writes."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.monotonic,
        *,
        every_s: float = _PROBE_EVERY_S,
        deadline_s: float = _CHECK_DEADLINE_S,
    ) -> None:
        self._database = database
        self._clock = clock
        self._every_s = every_s
        self._deadline_s = deadline_s
        self._trying: asyncio.Task[bool] | None = None
        self._begun = 0.0

    async def ok(self) -> bool:
        """Return True if a write succeeded within the deadline."""
        trying, moment = self._trying, self._clock()
        if trying is None or (trying.done() and moment - self._begun >= self._every_s):
            trying = self._trying = asyncio.create_task(self._try(), name="write probe")
            self._begun = moment
        await asyncio.wait({trying}, timeout=self._deadline_s)
        return trying.done() and trying.result()

    async def aclose(self) -> None:
        if self._trying is not None:
            await asyncio.wait({self._trying})

    async def _try(self) -> bool:
        try:
            await self._database.touch()
        except AppError:
            return False
        return True
