"""Waiting for a condition on state that changes in the same event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Watch:
    """Whoever changes the state calls ``changed``; it costs nothing while nobody waits."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def changed(self) -> None:
        if self._waiters:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters = []

    async def until(self, value: Callable[[], _T | None], timeout_s: float) -> _T:
        """Return the first result of ``value`` that is not None. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while (found := value()) is None:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter
            return found
