"""When audio was sent, from when it arrived."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import numpy as np
import pytest

from core.sound.arrivals import Arrivals

pytestmark = pytest.mark.unit

FRAME = np.ones(160, np.int16)


def sent(arrivals: Iterable[float]) -> list[float]:
    """Return when frames were sent that arrived at these times, in ms."""
    found = Arrivals(8000)
    for at in arrivals:
        found.push(FRAME, at / 1000)
    return [round(at * 1000, 3) for at, _ in found.settled(inf)]


def test_a_frame_was_sent_as_it_was_complete() -> None:
    assert sent([1020, 1040, 1060]) == [1000, 1020, 1040]


def test_a_burst_after_a_stall_is_not_late() -> None:
    assert sent([1020, 1100, 1100, 1100, 1100, 1120]) == [1000, 1020, 1040, 1060, 1080, 1100]


def test_lateness_that_varies_is_smoothed() -> None:
    late = [0, 7, 3, 9, 1, 4, 0]
    arrived = [1020 + 20 * index + late for index, late in enumerate(late)]
    assert sent(arrived) == [1000, 1020, 1040, 1060, 1080, 1100, 1120]


def test_what_was_lost_is_missing() -> None:
    arrived = [1020 + 20 * index for index in range(100)]
    lost = [at + 500 for at in arrived]
    found = sent(arrived[:60] + lost[60:])
    assert found[:60] == [1000 + 20 * index for index in range(60)]
    assert found[60:] == [1500 + 20 * index for index in range(60, 100)]


def test_frames_wait_until_those_after_them_are_known() -> None:
    found = Arrivals(8000)
    for at in (1.02, 1.04, 1.06):
        found.push(FRAME, at)
    assert len(list(found.settled(1.05))) == 2
    assert len(list(found.settled(inf))) == 1
