"""Levels on a clock, and the reports that carry them."""

from __future__ import annotations

import numpy as np
import pytest

from core.sound.reports import Loudness, SoundReport, step_of

pytestmark = pytest.mark.unit

RATE = 8000
TONE = np.tile(np.array([1000, -1000], np.int16), 20)  # 5 ms, 60 dB


def test_a_report_survives_its_encoding() -> None:
    said, heard = np.array([0, 60, 90], np.uint8), np.array([1, 2, 3], np.uint8)
    report = SoundReport(359_000_000_000, said, heard)
    data = report.encode()
    assert data == bytes.fromhex("0000005396114600 0003 003c5a 010203")
    again = SoundReport.decode(data)
    assert again.first == report.first
    assert again.said.tolist() == [0, 60, 90] and again.heard.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 9, b"\0" * 11, b"\0" * 9 + b"\1\0", b"\0" * 9 + b"\1\0\0\0"]
)
def test_anything_else_is_no_report(data: bytes) -> None:
    with pytest.raises(ValueError, match="too short|levels"):
        SoundReport.decode(data)


def test_levels_are_on_the_clock_however_the_pieces_are_cut() -> None:
    loudness = Loudness(RATE, kept_s=1.0)
    pcm = np.concatenate((np.zeros(80, np.int16), TONE, TONE))
    for start in range(0, len(pcm), 7):
        loudness.add(1000.0 + start / RATE, pcm[start : start + 7])
    first = step_of(1000.0)
    assert loudness.levels(first, 6).tolist() == [0, 0, 60, 60, 0, 0]
    assert loudness.levels(first + 3, 2).tolist() == [60, 0]


def test_what_is_too_old_is_silence() -> None:
    loudness = Loudness(RATE, kept_s=0.1)
    loudness.add(1000.0, TONE)
    loudness.add(1000.2, TONE)
    loudness.add(1000.0, TONE)  # late
    assert loudness.levels(step_of(1000.0), 1).tolist() == [0]
    assert loudness.levels(step_of(1000.2), 1).tolist() == [60]


def test_levels_that_are_put_are_those_that_are_returned() -> None:
    loudness = Loudness(RATE, kept_s=0.1)
    loudness.put(1000, np.array([0, 30, 60, 90], np.uint8))
    loudness.put(1004, np.array([5], np.uint8))
    assert loudness.levels(999, 7).tolist() == [0, 0, 30, 60, 90, 5, 0]
    loudness.put(900, np.array([7], np.uint8))  # long ago
    assert loudness.levels(1000, 4).tolist() == [0, 30, 60, 90]
