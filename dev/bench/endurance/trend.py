"""The trend of a series: a slope that is robust against outliers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

_Z = 1.96  # 95 %


@dataclass(frozen=True, slots=True)
class Trend:
    """The growth of y per unit of x, with the 95 % confidence interval."""

    slope: float
    low: float
    high: float

    def over(self, length: float) -> Trend:
        """Return the growth of y over that length of x."""
        return Trend(self.slope * length, self.low * length, self.high * length)


def theil_sen(x: Sequence[float], y: Sequence[float]) -> Trend:
    """Return the median slope between all pairs of points, with its interval after Sen (1968).

    Raise ValueError if no two points differ in x.
    """
    first, second = np.triu_indices(len(x), 1)
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    across, up = xs[second] - xs[first], ys[second] - ys[first]
    slopes = np.sort(up[across != 0] / across[across != 0])
    if not len(slopes):
        raise ValueError("a trend needs two points that differ in x")
    n = len(x)
    # The spread of Kendall's S without any trend.
    spread = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(round((len(slopes) - spread) / 2) - 1, 0)
    high = min(round((len(slopes) + spread) / 2), len(slopes) - 1)
    return Trend(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))


def ends(values: Sequence[float], share: float = 0.2) -> tuple[float, float]:
    """Return the medians of the first and of the last share of the values."""
    count = max(1, round(share * len(values)))
    return median(values[:count]), median(values[-count:])
