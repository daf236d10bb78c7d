"""Exponential backoff with jitter, so that many clients do not retry at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

FIRST_S = 0.1  # the delay after the first failure


class Backoff:
    """Doubling delays in seconds from ``first`` to ``longest``; ``reset`` after a success."""

    def __init__(
        self,
        first: float = FIRST_S,
        longest: float = 5.0,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._first = first
        self._longest = longest
        self._next = first
        self._sleep = sleep

    @property
    def failing(self) -> bool:
        """True between a failure and the next success."""
        return self._next != self._first

    def reset(self) -> None:
        self._next = self._first

    async def wait(self) -> None:
        delay = self._next
        self._next = min(delay * 2, self._longest)
        await self._sleep(delay * random.uniform(0.75, 1.0))
