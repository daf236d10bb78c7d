"""Reports of a phone leg on what was said and heard at the phone, and when.

A worker records a phone's call, but knows only when audio came to it and left it. On the way lie
buffers that no statistic shows, and that grow and shrink. So the leg, which sends and receives the
phone's packets, reports how loud both directions were, on its clock; the worker finds its own audio
in that, and with it the delay of each direction. The levels tell no words.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from core.audio import Pcm

METHOD: Final = "switchroom.reportSound"
"""The RPC method of a leg that begins the reports to its caller."""

TOPIC: Final = "switchroom.sound"
"""The topic of the reports' data packets."""

STEP_MS: Final = 5

Levels = npt.NDArray[np.uint8]
"""Decibels above a mean square of one, for each step: 0 is silence, 90 the loudest."""

_HEADER: Final = struct.Struct(">qH")  # first step since 1970, number of steps


@dataclass(frozen=True, slots=True)
class SoundReport:
    """The levels from step ``first`` on, of what the phone sent and was sent."""

    first: int
    said: Levels
    heard: Levels

    def encode(self) -> bytes:
        return _HEADER.pack(self.first, len(self.said)) + self.said.tobytes() + self.heard.tobytes()

    @classmethod
    def decode(cls, data: bytes) -> SoundReport:
        """Raises ValueError."""
        if len(data) < _HEADER.size:
            raise ValueError("too short")
        first, count = _HEADER.unpack_from(data)
        levels = np.frombuffer(data, np.uint8, offset=_HEADER.size)
        if len(levels) != 2 * count:
            raise ValueError(f"{len(levels)} levels instead of twice {count}")
        return cls(first, levels[:count], levels[count:])


def step_of(at: float) -> int:
    """Return the step of a time (Unix seconds)."""
    return int(at * 1000 // STEP_MS)


class Loudness:
    """The levels of a signal that is given in pieces, over the last ``kept_s``."""

    def __init__(self, rate: int, kept_s: float) -> None:
        self._rate = rate
        self._per_step = rate * STEP_MS // 1000
        self._energy = np.zeros(round(kept_s * 1000 / STEP_MS))
        self._end = 0  # the step after the last one kept

    def add(self, at: float, pcm: Pcm) -> None:
        """Add a piece whose first sample is at that time (Unix seconds)."""
        if not len(pcm):
            return
        first = round(at * self._rate)
        steps = (first + np.arange(len(pcm))) // self._per_step
        self._make_room(int(steps[-1]) + 1)
        begin = self._end - len(self._energy)
        kept = steps >= begin
        squares = pcm[kept].astype(np.float64) ** 2
        self._energy += np.bincount(steps[kept] - begin, squares, len(self._energy))

    def put(self, first: int, levels: Levels) -> None:
        """Put levels that were computed elsewhere."""
        self._make_room(first + len(levels))
        begin = self._end - len(self._energy)
        skipped = min(max(0, begin - first), len(levels))
        energy = (10.0 ** (levels[skipped:] / 10.0) - 1.0) * self._per_step
        self._energy[first + skipped - begin :][: len(energy)] = energy

    def levels(self, first: int, count: int) -> Levels:
        """Return the levels from a step on; silence where nothing is known."""
        begin = self._end - len(self._energy)
        wanted = np.zeros(count)
        low, high = max(first, begin), min(first + count, self._end)
        if low < high:
            wanted[low - first : high - first] = self._energy[low - begin : high - begin]
        return np.round(10 * np.log10(wanted / self._per_step + 1)).astype(np.uint8)

    def _make_room(self, end: int) -> None:
        count = min(end - self._end, len(self._energy))
        if count > 0:
            self._energy = np.concatenate((self._energy[count:], np.zeros(count)))
            self._end = end
