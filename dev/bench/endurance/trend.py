"""Whether something grows: a slope that a few odd points cannot bend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

_Z = 1.96  # 95 %


@dataclass(frozen=True, slots=True)
class Trend:
    """By how much y grows for each unit of x, with the 95 % confidence interval."""

    slope: float
    low: float
    high: float

    def over(self, length: float) -> Trend:
        """By how much y grows over that much of x."""
        return Trend(self.slope * length, self.low * length, self.high * length)


def theil_sen(x: Sequence[float], y: Sequence[float]) -> Trend:
    """The median of the slopes between all pairs of points; its interval after Sen (1968).

    Raises ValueError when no two points differ in x.
    """
    first, second = np.triu_indices(len(x), 1)
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    across, up = xs[second] - xs[first], ys[second] - ys[first]
    slopes = np.sort(up[across != 0] / across[across != 0])
    if not len(slopes):
        raise ValueError("a trend needs two points that differ in x")
    n = len(x)
    # The spread of Kendall's S when there is no trend at all.
    spread = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(round((len(slopes) - spread) / 2) - 1, 0)
    high = min(round((len(slopes) + spread) / 2), len(slopes) - 1)
    return Trend(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))


def ends(values: Sequence[float], share: float = 0.2) -> tuple[float, float]:
    """The medians of the first and of the last share of the values."""
    count = max(1, round(share * len(values)))
    return median(values[:count]), median(values[-count:])
