"""worker.streams.playout against a far end that plays in real time: nothing lost or doubled."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.streams.far_end import Rig
from worker.streams.playout import Finished, Playout, Progressed, Started

pytestmark = pytest.mark.unit

SILENCE = b"\xff"
QUEUED_S = 0.4 + 1e-9

speech_ms = st.integers(0, 700)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), speech_ms),
        st.tuples(st.sampled_from(["flush", "pause", "resume", "clear", "lose", "attach"])),
        st.tuples(st.just("wait"), st.integers(1, 900)),
    ),
    max_size=40,
)


Steps: TypeAlias = list[tuple[str, int] | tuple[str]]


class Script:
    """Runs steps, and keeps what each speech's bytes are."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.speeches: list[bytes] = []
        self.open = False
        self.dropping = False
        self.counter = 0
        rig.playout.attach(0.0)

    def do(self, step: tuple[str, int] | tuple[str]) -> None:
        rig, playout = self.rig, self.rig.playout
        match step:
            case ("push", ms):
                self.push(int(ms))
            case ("flush",):
                playout.flush()
                self.open = self.dropping = False
            case ("pause",):
                playout.pause(rig.now)
            case ("resume",):
                playout.resume(rig.now)
            case ("clear",):
                playout.clear(rig.now)
                self.dropping = self.open
            case ("lose",):
                rig.lose()
            case ("attach",):
                rig.lose()
                playout.attach(rig.now)
            case ("wait", ms):
                rig.run(int(ms) / 1000)
        rig.poll()

    def push(self, ms: int) -> None:
        audio = bytes((self.counter + i) % 251 for i in range(ms * 8))
        self.counter += len(audio)
        self.rig.playout.push(audio)
        if self.dropping:
            return
        if not self.open:
            self.speeches.append(b"")
            self.open = True
        self.speeches[-1] += audio

    def finish(self) -> None:
        for name in ("flush", "attach", "resume"):
            self.do((name,))
        self.rig.run(40.0)
        assert self.rig.playout.idle


def heard_by_reports(script: Script) -> bytes:
    """Return what the reports say that the far end has heard."""
    ends = [report for report in script.rig.reports if isinstance(report, Finished)]
    assert len(ends) == len(script.speeches)
    for end, speech in zip(ends, script.speeches, strict=True):
        assert end.interrupted or round(end.heard_s * 8000) == len(speech)
    return b"".join(
        speech[: round(end.heard_s * 8000)]
        for end, speech in zip(ends, script.speeches, strict=True)
    )


@settings(max_examples=150, deadline=None)
@given(steps, st.booleans())
def test_what_is_reported_is_what_was_heard(script_steps: Steps, echoes: bool) -> None:
    rig = Rig(Playout(8000, SILENCE, echoes=echoes), echo=echoes)
    script = Script(rig)
    for step in script_steps:
        script.do(step)
    script.finish()
    assert bytes(rig.far.heard).replace(SILENCE, b"") == heard_by_reports(script)
    assert rig.most_queued_s <= QUEUED_S


@settings(max_examples=100, deadline=None)
@given(steps, st.booleans(), st.sampled_from([0.01, 0.05, 0.12]), st.integers(-300, 300))
def test_delay_and_drift_do_not_fill_the_queue(
    script_steps: Steps, learns: bool, delay_s: float, ppm: int
) -> None:
    """Between two clocks a clear's position is exact to the delay, but speech is never lost."""
    rig = Rig(Playout(8000, SILENCE, echoes=not learns), delay_s=delay_s, ppm=ppm)
    script = Script(rig)
    for step in script_steps:
        script.do(step)
    script.finish()
    heard_by_reports(script)
    assert rig.most_queued_s <= QUEUED_S


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 1900), st.integers(-300, 300))
def test_a_clear_reports_what_was_played_within_20_ms(at_ms: int, ppm: int) -> None:
    rig = Rig(Playout(8000, SILENCE, echoes=True), ppm=ppm, delay_s=0.004)
    script = Script(rig)
    script_steps: Steps = [("push", 2000), ("flush",), ("wait", at_ms), ("clear",), ("wait", 100)]
    for step in script_steps:
        script.do(step)
    (end,) = [report for report in rig.reports if isinstance(report, Finished)]
    assert abs(end.heard_s - len(rig.far.heard) / 8000) <= 0.02


@settings(max_examples=100, deadline=None)
@given(steps)
def test_reports_come_in_order(script_steps: Steps) -> None:
    """Started at most once per speech, stretches one after the other, finished once."""
    rig = Rig(Playout(8000, SILENCE, echoes=True))
    script = Script(rig)
    for step in script_steps:
        script.do(step)
    script.finish()
    started, runs = 0, list[Progressed]()
    for report in rig.reports:
        match report:
            case Started():
                started += 1
                assert started == 1
            case Progressed():
                assert started == 1
                runs.append(report)
            case Finished(heard_s):
                assert sum(run.duration_s for run in runs) == pytest.approx(heard_s)
                for before, after in pairwise(runs):
                    assert before.offset_s + before.duration_s == pytest.approx(after.offset_s)
                    assert before.started_at + before.duration_s <= after.started_at + 1e-3
                started, runs = 0, []


@pytest.mark.parametrize("ppm", [-300, 0, 300])
def test_ten_minutes_of_drift_leave_no_longer_queue(ppm: int) -> None:
    rig = Rig(Playout(8000, SILENCE, echoes=True), ppm=ppm, delay_s=0.05)
    rig.playout.attach(0.0)
    queued = []
    for minute in range(10):
        rig.playout.push(b"a" * 8000 * 61 if minute == 0 else b"a" * 8000 * 60)
        rig.most_queued_s = 0.0
        rig.run(60.0)
        queued.append(rig.most_queued_s)
    assert max(queued[1:]) - min(queued[1:]) < 0.001
    # It is neither too little: the far end waited for the first chunk only.
    assert rig.far.dry_s == pytest.approx(0.05, abs=0.001)
