"""Tasks that a service owns, each for one call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Owned:
    """``what`` they do, for the log: a task that fails is logged, and stops nothing else."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._tasks: dict[asyncio.Task[None], str] = {}

    def begin(self, call_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"{self._what} {call_id}")
        self._tasks[task] = call_id
        task.add_done_callback(self._finished)

    def __contains__(self, call_id: str) -> bool:
        """Return True while a task of the call runs."""
        return call_id in self._tasks.values()

    async def aclose(self) -> None:
        """Cancel them, and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[None]) -> None:
        facts = {"call_id": self._tasks.pop(task)}
        if not task.cancelled() and task.exception():
            log.error(f"{self._what} failed", exc_info=task.exception(), extra=facts)
