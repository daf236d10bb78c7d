"""Finds when the far end said and heard the audio that came to and left the worker.

The far end's line reports how loud it was in both directions, and when (core.sound.reports). The
worker's own audio of a few seconds is shifted along the reported levels until it fits best.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

from core.audio import Pcm
from core.sound.reports import STEP_MS, Levels, Loudness, SoundReport, step_of

_KEPT_S: Final = 12.0
_WINDOW: Final = 2500 // STEP_MS
_REACH: Final = 2000 // STEP_MS  # in either direction: the clocks of two machines differ
_MARGIN: Final = 300 // STEP_MS  # the audio of these steps may still be on its way
_FLOOR: Final = 30.0  # dB; what is quieter is silence
_LEAST_SPREAD: Final = 4.0  # dB, of the reported levels; less has no shape to be found by
_LEAST_LIKENESS: Final = 0.9
_CLEAR: Final = 0.97
"""The first place that is as like as this is believed at once: the first words wait for it."""
_AGREE_S: Final = 0.1
_ALONE: Final = 100 // STEP_MS
_LESS_LIKE: Final = 0.05
"""Every other place, further away than that, must be this much less like it."""
_APART_S: Final = 0.2
"""Delays that differ by more than this and twice over are those of two clocks."""


class _Direction:
    """``delay_s``: how much later the worker's times are than the far end's."""

    def __init__(self, rate: int) -> None:
        self.own = Loudness(rate, _KEPT_S)
        self.far = Loudness(rate, _KEPT_S)
        self.delay_s: float | None = None
        self._found: deque[float] = deque(maxlen=2)  # before the last one

    def measure(self, until: int) -> None:
        """Compare the steps before ``until``."""
        first = until - _WINDOW
        far = self.far.levels(first, _WINDOW)
        own = self.own.levels(first - _REACH, _WINDOW + 2 * _REACH)
        found = best_shift(far, own)
        if found is None:
            return
        shift, likeness = found
        found_s = (shift - _REACH) * STEP_MS / 1000
        # What was found once may be a mistake.
        clear = self.delay_s is None and likeness >= _CLEAR
        if clear or any(abs(found_s - other_s) <= _AGREE_S for other_s in self._found):
            self.delay_s = found_s
        self._found.append(found_s)


class SoundTimes:
    """The own and the reported sound of one call, at ``rate`` Hz here."""

    def __init__(self, rate: int) -> None:
        self._said = _Direction(rate)
        self._heard = _Direction(rate)
        self._reported = 0
        self._skew_s: float | None = None

    def said(self, arrived: float, pcm: Pcm) -> None:
        """Note what came from the far end, and when its first sample did (Unix seconds)."""
        self._said.own.add(arrived, pcm)

    def heard(self, left: float, pcm: Pcm) -> None:
        """Note what was sent to the far end, and when its first sample left."""
        self._heard.own.add(left, pcm)

    def report(self, report: SoundReport) -> None:
        self._said.far.put(report.first, report.said)
        self._heard.far.put(report.first, report.heard)
        self._reported = report.first + len(report.said)

    def measured(self, known: float) -> tuple[float, float] | None:
        """Compare; return the delay from the far end to here, and from here to there, in s.

        None: they are not both known yet. Everything that came or left before the time ``known``
        has been noted.
        """
        until = min(self._reported, step_of(known) - _MARGIN)
        if until > 0:
            self._said.measure(until)
            self._heard.measure(until)
        said, there = self._said.delay_s, self._heard.delay_s
        heard = None if there is None else -there
        if said is None or heard is None:
            return None
        if self._skew_s is None:
            skew_s = (said - heard) / 2
            self._skew_s = skew_s if abs(skew_s) > _APART_S else 0.0
        return said - self._skew_s, heard + self._skew_s


def best_shift(wanted: Levels, among: Levels) -> tuple[float, float] | None:
    """Return where ``among`` is most like ``wanted``, in steps, and how much; None: nowhere."""
    shape = _shape(wanted)
    if shape.std() < _LEAST_SPREAD:
        return None
    likeness = _likeness(shape - shape.mean(), _shape(among))
    best = int(np.argmax(likeness))
    others = np.concatenate((likeness[: max(0, best - _ALONE)], likeness[best + _ALONE :]))
    least = max(_LEAST_LIKENESS, others.max(initial=-1.0) + _LESS_LIKE)
    if likeness[best] < least or not 0 < best < len(likeness) - 1:
        return None
    before, at, after = likeness[best - 1 : best + 2]
    bend = before - 2 * at + after
    return best + (0.5 * (before - after) / bend if bend else 0.0), float(at)


def _shape(levels: Levels) -> npt.NDArray[np.float64]:
    return np.maximum(levels.astype(np.float64), _FLOOR)


def _likeness(
    wanted: npt.NDArray[np.float64], among: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the correlation (-1 to 1) of ``wanted``, whose mean is 0, at each position."""
    count = len(wanted)
    sums = np.cumsum(np.concatenate(([0.0], among)))
    squares = np.cumsum(np.concatenate(([0.0], among**2)))
    mean = (sums[count:] - sums[:-count]) / count
    spread = np.maximum((squares[count:] - squares[:-count]) / count - mean**2, 1e-9)
    found: npt.NDArray[np.float64] = np.correlate(among, wanted, "valid") / (
        count * np.sqrt(spread) * wanted.std()
    )
    return found
