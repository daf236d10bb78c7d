"""The statistics of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile (nearest rank); ``share`` is from 0 to 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the median, by bootstrap (2,000 draws)."""
    draws = np.random.default_rng(1).choice(np.asarray(values), (2000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the median of the rounds' ratios, with their minimum and maximum."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


SUMMARY = ("p50 (95 % CI)", "p95", "p99", "max")
"""The columns of ``summary``."""


def summary(values: Sequence[float]) -> tuple[str, str, str, str]:
    """Summarise times in ms."""
    low, high = interval(values)
    return (
        f"{median(values):.0f} ms ({low:.0f}–{high:.0f})",
        f"{percentile(values, 0.95):.0f} ms",
        f"{percentile(values, 0.99):.0f} ms",
        f"{max(values):.0f} ms",
    )
