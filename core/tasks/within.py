"""Wait for something, but not for long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def within(seconds: float, waiting: Awaitable[object]) -> bool:
    """Return True if ``waiting`` is done in time; otherwise it is cancelled."""
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        return False
    return True
