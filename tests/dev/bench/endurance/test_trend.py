"""The trend that tells growth from noise."""

from __future__ import annotations

import numpy as np
import pytest

from dev.bench.endurance.trend import Trend, ends, theil_sen

pytestmark = pytest.mark.unit


def test_a_straight_line_has_its_slope() -> None:
    assert theil_sen([0, 10, 20, 40], [5, 6, 7, 9]) == Trend(0.1, 0.1, 0.1)


def test_what_stands_still_does_not_grow() -> None:
    assert theil_sen([1, 2, 3], [7, 7, 7]).over(500) == Trend(0, 0, 0)


def test_outliers_do_not_bend_it() -> None:
    x = list(range(20))
    y = [2.0 * each for each in x]
    y[3], y[15] = 900.0, -700.0
    assert theil_sen(x, y).slope == pytest.approx(2.0)


def test_the_interval_holds_the_slope_and_noise_alone_is_no_growth() -> None:
    """With 95 % intervals, about 10 of 200 series may miss the slope."""
    draw = np.random.default_rng(7)
    x = [float(each) for each in range(12)]
    missed = 0
    for slope in (0.0, 3.0):
        for _ in range(100):
            y = slope * np.asarray(x) + draw.normal(0, 2, len(x))
            trend = theil_sen(x, [float(each) for each in y])
            assert trend.low <= trend.slope <= trend.high
            missed += not trend.low <= slope <= trend.high
    assert 0 < missed < 20


def test_the_interval_is_sens() -> None:
    """5 points have 10 slopes. Kendall's S spreads by 4.08 · 1.96 = 8.0, hence ranks 1 and 10."""
    y = [0.0, 1.0, 3.0, 7.0, 15.0]
    slopes = sorted((y[j] - y[i]) / (j - i) for i in range(5) for j in range(i + 1, 5))
    trend = theil_sen(range(5), y)
    assert (trend.low, trend.high) == (slopes[0], slopes[9])


def test_points_at_the_same_place_tell_no_slope() -> None:
    assert theil_sen([1, 1, 2], [0, 4, 3]).slope == pytest.approx(1.0)
    with pytest.raises(ValueError, match="differ in x"):
        theil_sen([1, 1], [0, 4])


def test_ends_are_medians_of_the_first_and_the_last_share() -> None:
    values = [9.0, 1, 2, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 7, 8, 9]
    assert ends(values) == (2.0, 8.0)
    assert ends([4.0]) == (4.0, 4.0)
