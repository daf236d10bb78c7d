"""The reports of a leg whose phone a test plays."""

from __future__ import annotations

import time

import numpy as np
import pytest

from core.sound.reports import SoundReport, step_of
from sip.audio.sound_reports import SoundReporter

pytestmark = pytest.mark.unit

RATE = 8000
FRAME = 160  # samples of 20 ms
VOICE = np.tile(np.array([1000, -1000], np.int16), FRAME // 2).tobytes()
SILENCE = bytes(2 * FRAME)


class Phone:
    """Takes a frame from the buffer every 20 ms, as baresip does."""

    def __init__(self, trip_ms: float = 0.0, queue_s: float = 0.02) -> None:
        self.buffered = 0
        self.queue_s = queue_s
        self.reporter = SoundReporter(RATE, self, lambda: trip_ms)
        self.began = time.time()
        self.frames = 0

    def backlog(self) -> int:
        return self.buffered

    def to_wire_s(self) -> float:
        return self.queue_s

    @property
    def now(self) -> float:
        return self.began + self.frames * 0.02

    def tick(self, said: bytes, heard: bytes) -> None:
        """20 ms pass: one frame arrives, and one is written before the next is transmitted."""
        self.reporter.written(heard)
        self.buffered += len(heard)
        self.frames += 1
        self.buffered = max(0, self.buffered - len(SILENCE))
        self.reporter.look(said, self.now)


def loud(report: SoundReport, phone: Phone) -> tuple[list[int], list[int]]:
    """Return the ms after the beginning that are loud, rounded to 20, in both directions."""
    begin = step_of(phone.began)
    return (
        [round((report.first + i - begin) * 5) for i in np.flatnonzero(report.said > 40)],
        [round((report.first + i - begin) * 5) for i in np.flatnonzero(report.heard > 40)],
    )


def played(phone: Phone) -> tuple[list[int], list[int]]:
    for frame in range(100):
        phone.tick(VOICE if frame == 30 else SILENCE, VOICE if frame == 40 else SILENCE)
    return loud(phone.reporter.report(phone.now), phone)


def test_both_directions_are_reported_on_the_wires_clock() -> None:
    said, heard = played(Phone())
    # The 31st frame arrived 620 ms after the beginning; the 41st left the buffer after 820 ms.
    assert said[0] == pytest.approx(620, abs=5) and said[-1] == pytest.approx(635, abs=5)
    assert heard[0] == pytest.approx(840, abs=5) and heard[-1] == pytest.approx(855, abs=5)


def test_the_way_to_the_phone_counts() -> None:
    near, far = played(Phone()), played(Phone(trip_ms=100.0))
    assert near[0][0] - far[0][0] == pytest.approx(50, abs=5)
    assert far[1][0] - near[1][0] == pytest.approx(50, abs=5)


def test_what_the_stack_still_holds_is_heard_later() -> None:
    usual, longer = played(Phone()), played(Phone(queue_s=0.06))
    assert longer[1][0] - usual[1][0] == pytest.approx(40, abs=5)
    assert longer[0] == usual[0]


def test_a_busy_loop_delays_nothing_in_the_reports() -> None:
    """Several frames are seen at once, after a stall."""
    phone = Phone()
    late: list[bytes] = []
    for frame in range(100):
        said = VOICE if frame == 30 else SILENCE
        if 28 <= frame < 33:
            late.append(said)
            phone.tick(b"", SILENCE)
        else:
            phone.tick(b"".join((*late, said)), SILENCE)
            late.clear()
    said_ms, _ = loud(phone.reporter.report(phone.now), phone)
    assert said_ms[0] == pytest.approx(620, abs=5)


def test_reports_follow_each_other_without_a_gap() -> None:
    phone = Phone()
    reports = []
    for _ in range(3):
        for _ in range(50):
            phone.tick(SILENCE, SILENCE)
        reports.append(phone.reporter.report(phone.now))
    for before, after in zip(reports, reports[1:], strict=False):
        assert before.first + len(before.said) == after.first
        assert len(after.said) == len(after.heard) == 200
