"""Signals at the recording's rate: where they were, and as they were."""

from __future__ import annotations

import numpy as np
import pytest

from core.audio import Pcm
from worker.recording.resample import RATE, Resampler

pytestmark = pytest.mark.unit


def tone(rate: int, hz: float = 440.0, seconds: float = 1.0) -> Pcm:
    at = np.arange(round(rate * seconds)) / rate
    return (10_000 * np.sin(2 * np.pi * hz * at)).astype(np.int16)


def whole(resampler: Resampler, pcm: Pcm, piece: int) -> Pcm:
    parts = [resampler.push(pcm[at : at + piece]) for at in range(0, len(pcm), piece)]
    return np.concatenate([*parts, resampler.flush()])


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("piece_ms", [20, 7])
def test_a_tone_is_neither_shifted_nor_changed(rate: int, piece_ms: int) -> None:
    found = whole(Resampler(rate), tone(rate), rate * piece_ms // 1000)
    assert abs(len(found) - RATE) <= 1
    inner = slice(RATE // 50, -RATE // 50)
    wanted = tone(RATE)[: len(found)]
    assert np.max(np.abs(found[inner].astype(int) - wanted[inner])) <= 20


def test_what_a_lower_rate_cannot_hold_is_left_out() -> None:
    found = whole(Resampler(48_000), tone(48_000, hz=12_000), 480)
    assert np.max(np.abs(found[RATE // 50 : -RATE // 50])) < 100


def test_a_signal_does_not_run_into_the_next_one() -> None:
    resampler = Resampler(24_000)
    first = whole(resampler, tone(24_000), 480)
    assert np.array_equal(first, whole(resampler, tone(24_000), 480))
