"""Delays found by comparing sound with reports of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from core.audio import Pcm
from core.sound.reports import STEP_MS, Levels, Loudness, SoundReport, step_of
from worker.recording.sound_times import SoundTimes, best_shift

pytestmark = pytest.mark.unit

RATE = 16_000
BEGIN = 1000.0


def speech(seed: int, seconds: float) -> Pcm:
    """Noise in syllables and pauses of random lengths."""
    random = np.random.default_rng(seed)
    pieces: list[npt.NDArray[np.float64]] = []
    while sum(map(len, pieces)) < seconds * RATE:
        level = random.choice([0, 300, 3000, 9000])
        pieces.append(random.normal(0, level, int(random.uniform(0.03, 0.25) * RATE)))
    return np.clip(np.concatenate(pieces), -32768, 32767).astype(np.int16)


def reports(said: Pcm, heard: Pcm, until: float) -> SoundReport:
    """What a leg says of both, which began at BEGIN there."""
    both = []
    for pcm in (said, heard):
        loudness = Loudness(RATE, 20.0)
        loudness.add(BEGIN, pcm)
        both.append(loudness.levels(step_of(BEGIN), step_of(until) - step_of(BEGIN)))
    return SoundReport(step_of(BEGIN), *both)


def found(said_s: float, heard_s: float, skew_s: float = 0.0) -> tuple[float, float] | None:
    """Compare 6 s that came ``said_s`` later and left ``heard_s`` earlier than at the phone."""
    times = SoundTimes(RATE)
    said, heard = speech(1, 6.0), speech(2, 6.0)
    times.said(BEGIN + said_s + skew_s, said)
    times.heard(BEGIN - heard_s + skew_s, heard)
    delays = None
    for until in (BEGIN + 4.0, BEGIN + 5.0, BEGIN + 6.0):
        times.report(reports(said, heard, until))
        delays = times.measured(until + 0.5)
    return delays


@pytest.mark.parametrize(
    ("said_s", "heard_s"), [(0.05, 0.1), (0.0, 0.0), (0.0437, 0.3021), (0.4, 0.02)]
)
def test_each_ways_delay_is_found(said_s: float, heard_s: float) -> None:
    assert found(said_s, heard_s) == pytest.approx((said_s, heard_s), abs=0.002)


@pytest.mark.parametrize("skew_s", [-1.2, 0.9])
def test_the_clocks_of_two_machines_may_differ(skew_s: float) -> None:
    """Which part of a difference is a delay cannot be known: they are taken to be equal then."""
    assert found(0.05, 0.09, skew_s) == pytest.approx((0.07, 0.07), abs=0.002)


def test_nothing_is_found_where_nothing_was_said() -> None:
    times = SoundTimes(RATE)
    silence = np.zeros(6 * RATE, np.int16)
    times.said(BEGIN, speech(1, 6.0))
    times.heard(BEGIN, silence)
    for until in (BEGIN + 4.0, BEGIN + 5.0, BEGIN + 6.0):
        times.report(reports(speech(1, 6.0), silence, until))
        assert times.measured(until + 0.5) is None


@pytest.mark.parametrize(("noise", "needed"), [(0, 1), (25, 2)])
def test_one_finding_alone_is_believed_only_if_it_is_clear(noise: float, needed: int) -> None:
    """``noise`` dB are added to the levels at the phone."""
    times = SoundTimes(RATE)
    said, heard = speech(1, 6.0), speech(2, 6.0)
    times.said(BEGIN, said)
    times.heard(BEGIN, heard)
    report = reports(said, heard, BEGIN + 5.0)
    random = np.random.default_rng(5)
    noisy = report.said + random.uniform(0, noise, len(report.said))
    times.report(replace(report, said=noisy.astype(np.uint8)))
    findings = [times.measured(BEGIN + 5.5) for _ in range(2)]
    assert [found is not None for found in findings] == [needed == 1, True]


def levels(text: str) -> Levels:
    return np.array([60 if each == "#" else 0 for each in text], np.uint8)


def test_a_shape_that_is_there_twice_is_not_found() -> None:
    assert best_shift(levels("..##.#..##.#"), levels("." * 40 + "..##.#..##.#" * 12)) is None


def test_a_shape_is_found_between_two_steps() -> None:
    wanted = np.array([30, 30, 40, 60, 80, 60, 40, 30, 30, 30], np.uint8)
    among = np.full(60, 30, np.uint8)
    among[22:30] = [30, 35, 50, 70, 70, 50, 35, 30]
    found = best_shift(wanted, among)
    assert found is not None and found[0] == pytest.approx(21.5, abs=0.2)
    assert 0.9 < found[1] < 1
    assert STEP_MS == 5
