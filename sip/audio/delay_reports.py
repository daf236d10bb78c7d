"""Reports to the room how long a call's audio takes between the phone's packets and LiveKit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from livekit import rtc

from core.sound.media_delay import ATTRIBUTE, FIRST_POLL_S, POLL_S, RoomDelay

log = logging.getLogger(__name__)

ANSWER_WITHIN_S: Final = 2.0
# Every change is sent to everyone in the room, so smaller ones are not reported.
STEP_MS: Final = 10


async def tell_delay(
    room: rtc.Room,
    beyond_ms: Callable[[], float],
    set_attributes: Callable[[Mapping[str, str]], None],
) -> None:
    """Set the participant's ``switchroom.mediaDelayMs``, both directions together, until cancelled.

    It is the sum of the jitter buffer for the room's audio, the round trip to LiveKit, and
    ``beyond_ms``: the standing backlog towards the phone and, if known, the round trip to it.
    """
    delay = RoomDelay()
    told: int | None = None
    await asyncio.sleep(FIRST_POLL_S)
    while True:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                stats = await room.get_rtc_stats()
            delay.update([*stats.publisher_stats, *stats.subscriber_stats])
        except (RuntimeError, TimeoutError) as error:
            log.debug("no media statistics", extra={"cause": str(error)})
        if delay.ms is not None:
            now = round(delay.ms + beyond_ms())
            if told is None or abs(now - told) >= STEP_MS:
                told = now
                set_attributes({ATTRIBUTE: str(now)})
        await asyncio.sleep(POLL_S)
