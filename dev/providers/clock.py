"""Simulated delays: moments on the monotonic clock, never sums of sleeps."""

from __future__ import annotations

import asyncio
import time


def now() -> float:
    """Seconds of the monotonic clock that all deadlines here are on."""
    return time.monotonic()


async def until(deadline: float) -> float:
    """Wait for the moment and return by how many ms it was missed (0 or more).

    A deadline in the past does not wait, so work done before it hides inside the delay.
    """
    remaining = deadline - now()
    if remaining > 0:
        await asyncio.sleep(remaining)
    return max(0.0, (now() - deadline) * 1000)
