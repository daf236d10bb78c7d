"""The audio delay between a participant and the worker, as far as it can be measured."""

from __future__ import annotations

import asyncio
import logging

from livekit import rtc

from core.sound.media_delay import ATTRIBUTE, FIRST_POLL_S, POLL_S, RoomDelay

log = logging.getLogger(__name__)

_ANSWER_WITHIN_S = 2.0


class MediaDelay:
    """Polls the delay from ``start``, at the answer, to ``aclose``, which is safe at any time."""

    def __init__(self, room: rtc.Room, identity: str) -> None:
        self._delay = RoomDelay()
        self._room = room
        self._identity = identity
        self._polling: asyncio.Task[None] | None = None

    @property
    def ms(self) -> float | None:
        """The delay of both directions in ms; None before the first measurement.

        It includes the worker's jitter buffer, the network between worker and LiveKit, and the
        delay that the embedded bridge reports for its own side. livekit-sip reports none.
        """
        if self._delay.ms is None:
            return None
        leg = self._room.remote_participants.get(self._identity)
        told = "" if leg is None else leg.attributes.get(ATTRIBUTE, "")
        return self._delay.ms + (float(told) if told.isdecimal() else 0.0)

    def start(self) -> None:
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="media delay")

    async def aclose(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)

    async def _poll(self) -> None:
        await asyncio.sleep(FIRST_POLL_S)
        while True:
            try:
                async with asyncio.timeout(_ANSWER_WITHIN_S):
                    stats = await self._room.get_rtc_stats()
                self._delay.update([*stats.publisher_stats, *stats.subscriber_stats])
            except (RuntimeError, TimeoutError) as error:
                log.debug("no media statistics", extra={"error": str(error)})
            await asyncio.sleep(POLL_S)
