"""Finds audio that a phone has sent and that was lost on the way, by when the rest arrives.

The stack hands over decoded audio without sequence numbers, one packet less for each that was
lost. What comes after a loss is later by it than all that came just before, and stays so; what
waited comes late only once, and then in a burst.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_BEFORE: Final = 50
_AFTER: Final = 4
"""Arrivals (one each 20 ms) that are compared. Fewer would take more jitter for a loss."""
_TYPICAL: Final = 0.95  # of the arrivals before are at most this late: single stalls do not count
_LEAST: Final = 0.75  # of a packet
_FEW: Final = 20  # arrivals; with less nothing is known


class LostAudio:
    """The loss in one stream of audio at ``rate`` Hz, in packets of ``packet`` samples."""

    def __init__(self, rate: int, packet: int) -> None:
        self._rate = rate
        self._packet = packet
        self._samples = 0
        self._late: deque[float] = deque(maxlen=_BEFORE + _AFTER)
        """How late arrivals were, in samples, but for a constant."""

    def filled(self, samples: int) -> None:
        """Note silence that the caller has put in the place of audio that did not come."""
        self._samples += samples

    def missing(self, samples: int, now: float) -> int:
        """Note an arrival (seconds); return how many samples were lost before it, or just before.

        The caller puts silence in their place.
        """
        self._samples += samples
        self._late.append(now * self._rate - self._samples)
        if len(self._late) < _FEW:
            return 0
        *before, a, b, c, d = self._late
        least = min(a, b, c, d)
        before.sort()
        if least <= before[int((len(before) - 1) * _TYPICAL)]:
            return 0
        lost = int((least - before[0]) / self._packet + 1 - _LEAST) * self._packet
        if lost:
            self._samples += lost
            for at in range(-_AFTER, 0):
                self._late[at] -= lost
        return lost
