"""The benchmarks of recordings: their tables and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dev.alignment.measured import Alignment, Channel
from dev.alignment.offsets import Offset
from dev.alignment.transcript import Errors
from dev.bench.held import Held, Turn
from dev.bench.recording import alignment, cost
from dev.bench.recording.alignment import Line

pytestmark = pytest.mark.unit


def channel(*ms: float) -> Channel:
    return Channel([Offset(number / 2, each) for number, each in enumerate(ms)])


def line(
    off_ms: float = 3.0, late_ms: float = 10.0, broken: int = 0, held: Sequence[float] = ()
) -> Line:
    errors = Errors([late_ms, -late_ms], [late_ms] * 3)
    found = Alignment(channel(*[off_ms] * 9), channel(*[-1.0] * 9), errors, held)
    return Line(found, 4, broken)


def test_each_line_has_its_row_and_verdict(tmp_path: Path) -> None:
    found = alignment.section({"room": line(off_ms=25.0, broken=1), "socket": line()}, 10)
    assert [row[0] for row in found.rows] == ["room", "socket"]
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert found.rows[1][1:3] == ("3.0 / 3.0 / 3.0 ms", "0.0 ms")
    assert "offset of each channel, p95 ≤ 20 ms: missed, 25 ms" in found.notes[0]
    assert "4 rounds, 1 without an answer" in found.notes[0]
    assert "missed" not in found.notes[1]
    assert found.name == "recording-alignment"
    found.save(tmp_path, "a day")
    assert (tmp_path / "recording-alignment.svg").exists()


def test_the_section_says_how_it_was_measured() -> None:
    found = alignment.section({"room": line(held=(0.0, 7.0))}, 2, ["Lost: 3."], at_once=True)
    assert found.command.endswith("recording-alignment --minutes 2 --at-once")
    assert found.name == "recording-alignment"
    assert "2 holds, 1 of them not silent" in found.notes[0]
    assert "all at the same time" in found.notes[1]
    assert found.notes[-1] == "Lost: 3."
    alone = alignment.section({"room": line()}, 2)
    assert not alone.command.endswith("--at-once") and "one after the other" in alone.notes[1]


def held(cpu: float, mib: float, took_ms: float) -> Held:
    return Held(2, [Turn(took_ms, 0.0)], {"gateway": 2 * cpu}, 90.0, 90.0 + mib, [], ("gateway",))


def test_a_recording_costs_what_the_rounds_differ_by() -> None:
    plain = [held(0.03, 4.0, 600.0), held(0.05, 40.0, 640.0), held(0.03, 4.0, 600.0)]
    recorded = [
        # Other processes, with another memory when they are idle.
        replace(held(0.04, mib, took_ms), pss_before_mib=95.0, pss_mib=95.0 + mib)
        for mib, took_ms in ((6.0, 604.0), (42.0, 644.0), (6.0, 604.0))
    ]
    (goals, _) = cost.section(plain, recorded).notes
    assert "CPU of a recording ≤ 3 % of a core: reached, 1 % of a core" in goals
    assert "memory of a recording ≤ 3 MB: reached, 1.05 MB" in goals
    assert "turn p50, recorded minus not ≤ 5 ms: reached, 4 ms" in goals


def test_turns_are_compared_more_finely_than_by_frames() -> None:
    def several(*counts: int) -> list[Held]:
        frames = zip((560.0, 580.0, 600.0), counts, strict=True)
        return [held(0.03, 4.0, ms) for ms, count in frames for _ in range(count)]

    (goals, _) = cost.section(several(40, 40, 40), several(32, 40, 48)).notes
    assert "turn p50, recorded minus not ≤ 5 ms: reached, 4 ms" in goals
    (goals, _) = cost.section(several(40, 40, 40), several(20, 40, 60)).notes
    assert "turn p50, recorded minus not ≤ 5 ms: missed, 10 ms" in goals
