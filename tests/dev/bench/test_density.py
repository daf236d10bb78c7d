"""The density benchmark: the verdict on its measurements, and its accounting of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev.bench import density, usage
from dev.bench.climb import Climb, Limit, within
from dev.bench.held import WORKER, Held, Turn
from dev.bench.usage import MACHINE, PHONE, Snapshot

pytestmark = pytest.mark.unit

LIMIT = Limit(1000.0, 60.0)


def held(
    calls: int, *, took_ms: float | None = 900.0, hole_ms: float = 10.0, cpu: float = 0.04
) -> Held:
    turns = [Turn(took_ms, hole_ms), Turn(800.0, 5.0)]
    cores = {WORKER: calls * cpu, PHONE: 0.3, MACHINE: 1.1}
    return Held(calls, turns, cores, 200.0, 200.0 + 1000 * cpu * calls, [0.1, 0.4])


def climb(name: str, calls: int, cpu: float) -> Climb:
    levels = {number: held(number, cpu=cpu) for number in range(2, calls + 1, 2)}
    return Climb(name, calls, levels | {calls + 2: held(calls + 2, hole_ms=90.0, cpu=cpu)})


def test_calls_are_held_when_nobody_waits_or_misses_anything() -> None:
    assert within(held(4), LIMIT)
    assert not within(held(4, took_ms=1000.0), LIMIT)
    assert not within(held(4, hole_ms=80.0), LIMIT)
    assert not within(held(4, took_ms=None), LIMIT)


def test_the_verdict_says_what_each_held_and_took(tmp_path: Path) -> None:
    ours, bare = climb("ours", 8, cpu=0.03), climb("bare", 4, cpu=0.06)
    found = density.section(ours, bare, path_ms=160.0)
    assert "8 and 4 calls, 2.00 ×" in found.notes[0]
    assert "CPU per call 0.50 (0.50–0.50)" in found.notes[0]
    assert "memory per call 0.50 (0.50–0.50)" in found.notes[0]
    assert [(row[0], row[1], row[-1]) for row in found.rows] == [
        ("2", "ours", "yes"),
        ("2", "bare", "yes"),
        ("4", "ours", "yes"),
        ("4", "bare", "yes"),
        ("6", "ours", "yes"),
        ("6", "bare", "no"),
        ("8", "ours", "yes"),
        ("10", "ours", "no"),
    ]
    assert all(len(row) == len(found.columns) for row in found.rows)
    found.save(tmp_path, "a day")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["density.json", "density.svg"]


def test_a_side_that_answers_nothing_is_reported_all_the_same() -> None:
    dead = Held(2, [Turn(None, 0.0)], {WORKER: 0.1, MACHINE: 0.2}, 100.0, 150.0, [])
    found = density.section(climb("ours", 2, 0.03), Climb("bare", 0, {2: dead}), path_ms=160.0)
    assert "2 and 0 calls" in found.notes[0]
    assert [row[-1] for row in found.rows] == ["yes", "no", "no"]


def test_a_tree_is_counted_with_its_descendants() -> None:
    # The kernel counts CPU time in ticks: the descendant uses several before it prints "up".
    spend = "import time\nwhile time.process_time() < 0.1: pass\nprint('up', flush=True); input()"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spend!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        assert usage.processes(process.pid) == 2
        assert usage.pss_mib(process.pid) > 1
        before = Snapshot.take({"a": process.pid})
        assert before.cpu_s["a"] >= 0.09 and before.cpu_s[PHONE] > 0
        assert usage.cpu_s(os.getpid()) >= before.cpu_s["a"] + before.cpu_s[PHONE] - 0.1
        later = Snapshot(before.at + 2, {name: spent + 1 for name, spent in before.cpu_s.items()})
        assert before.cores(later) == pytest.approx({"a": 0.5, PHONE: 0.5, MACHINE: 0.5})
