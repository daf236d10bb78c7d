"""Reports to workers of what the phone said and heard, and when (core.sound.reports)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Final, Protocol

import numpy as np
from livekit import rtc

from core.audio import Pcm
from core.sound.arrivals import Arrivals
from core.sound.reports import STEP_MS, TOPIC, Levels, Loudness, SoundReport, step_of

log = logging.getLogger(__name__)

_EVERY_S: Final = 1.0
_LAG_S: Final = 0.5
"""Audio is reported this much later: until then the rest of a stall or a burst may come."""
_MARGIN_S: Final = 0.1
_KEPT_S: Final = 4.0
_SEND_WITHIN_S: Final = 5.0

_PACKET_S: Final = 0.02
"""A sample's time is that of its packet's first one, on the wire, as the phone counts it."""


class Queues(Protocol):
    """What a phone is to be sent: see ``PhoneAudio``."""

    def backlog(self) -> int: ...

    def to_wire_s(self) -> float: ...


class _Direction:
    def __init__(self, rate: int) -> None:
        self._arrivals = Arrivals(rate, _LAG_S)
        self._loudness = Loudness(rate, _KEPT_S)

    def push(self, pcm: Pcm, now: float) -> None:
        self._arrivals.push(pcm, now)

    def settle(self, before: float, later_s: float) -> None:
        for at, pcm in self._arrivals.settled(before):
            self._loudness.add(at + _PACKET_S + later_s, pcm)

    def levels(self, first: int, count: int) -> Levels:
        return self._loudness.levels(first, count)


class SoundReporter:
    """What one phone says and hears, at ``rate`` Hz, on the wire at the phone.

    ``trip_ms`` returns the round trip to the phone.
    """

    def __init__(self, rate: int, queues: Queues, trip_ms: Callable[[], float]) -> None:
        self._queues = queues
        self._trip_ms = trip_ms
        self._said = _Direction(rate)
        self._heard = _Direction(rate)
        self._waiting = bytearray(queues.backlog())
        self._next = step_of(time.time())

    def written(self, pcm: bytes) -> None:
        """Note audio that waits to be transmitted."""
        self._waiting += pcm

    def look(self, received: bytes, now: float) -> None:
        """Note what has come since the last look (Unix seconds), and what was transmitted."""
        if received:
            self._said.push(np.frombuffer(received, np.int16), now)
        left = max(0, len(self._waiting) - self._queues.backlog())
        if left:
            self._heard.push(np.frombuffer(bytes(self._waiting[:left]), np.int16), now)
            del self._waiting[:left]

    def report(self, now: float) -> SoundReport:
        """Return the levels since the last report, up to a moment ago."""
        one_way_s = self._trip_ms() / 2000
        self._said.settle(now - _LAG_S, -one_way_s)
        self._heard.settle(now - _LAG_S, one_way_s + self._queues.to_wire_s())
        until = step_of(now - _LAG_S - _MARGIN_S - one_way_s)
        first = max(self._next, until - round(_KEPT_S * 1000 / STEP_MS))
        self._next = max(until, first)
        count = self._next - first
        return SoundReport(first, self._said.levels(first, count), self._heard.levels(first, count))


async def tell_sound(room: rtc.Room, reporter: SoundReporter, whom: Collection[str]) -> None:
    """Report every second to the participants ``whom``, until cancelled."""
    while True:
        await asyncio.sleep(_EVERY_S)
        try:
            report = reporter.report(time.time())
            async with asyncio.timeout(_SEND_WITHIN_S):
                await room.local_participant.publish_data(
                    report.encode(), topic=TOPIC, destination_identities=list(whom)
                )
        except Exception as error:  # a call goes on without its reports
            log.warning("no sound report", exc_info=error)
