"""Tests of worker.streams.allowance."""

from __future__ import annotations

import pytest

from worker.streams.allowance import Allowance

pytestmark = pytest.mark.unit


def test_a_burst_and_then_the_rate() -> None:
    audio = Allowance(per_s=1.1, burst=2.0)
    assert audio.take(1.5, 0.0)
    assert not audio.take(1.0, 0.0)
    assert audio.take(0.5, 0.0)
    assert not audio.take(0.2, 0.1)
    assert audio.take(0.1, 0.1)


def test_real_time_is_never_too_much() -> None:
    audio = Allowance(per_s=1.1, burst=2.0)
    assert all(audio.take(0.02, frame * 0.02) for frame in range(5000))


def test_it_saves_no_more_than_the_burst() -> None:
    audio = Allowance(per_s=1.0, burst=2.0)
    assert audio.take(2.0, 0.0)
    assert audio.take(2.0, 60.0)
    assert not audio.take(0.1, 60.0)
