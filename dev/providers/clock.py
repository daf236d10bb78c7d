"""Simulated delays: deadlines on the monotonic clock, not sums of sleeps."""

from __future__ import annotations

import asyncio
import time


def now() -> float:
    """Return the time of the clock of all deadlines here, in seconds."""
    return time.monotonic()


async def until(deadline: float) -> float:
    """Wait until the deadline; return by how many ms it was missed (0 or more).

    A past deadline is not waited for, so the work done before it is part of the delay.
    """
    remaining = deadline - now()
    if remaining > 0:
        await asyncio.sleep(remaining)
    return max(0.0, (now() - deadline) * 1000)
