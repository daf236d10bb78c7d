"""Reports a far end from which no sound comes: a one-way connection, or a phone on mute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from core.audio import Pcm
from core.tasks.within import within

PATIENCE_S: Final = 5.0
"""How long the agent listens before it reports that nothing came."""
_STEP_S = 0.5
# WebRTC plays up to 2 where nothing was sent; the smallest step of G.711 is 8.
_NOTHING = 4


def is_sound(pcm: Pcm) -> bool:
    """Return True if the samples are more than what a line plays that carries nothing."""
    return bool(len(pcm)) and bool(pcm.max() > _NOTHING or pcm.min() < -_NOTHING)


async def report_missing_sound(
    sounded: asyncio.Event,
    post: Callable[[str, dict[str, Any]], object],
    *,
    listens: Callable[[], bool],
    patience_s: float = PATIENCE_S,
    step_s: float = _STEP_S,
) -> None:
    """Post ``audio.missing`` after ``patience_s``, and ``audio.received`` if a sound comes later.

    ``sounded``: set by the first sound. Only the time in which the agent
    ``listens`` counts.
    """
    began, left_s = time.monotonic(), patience_s
    while left_s > 0:
        if await within(step_s, sounded.wait()):
            return
        if listens():
            left_s -= step_s
    post("audio.missing", {"afterMs": _since_ms(began)})
    await sounded.wait()
    post("audio.received", {"afterMs": _since_ms(began)})


def _since_ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
