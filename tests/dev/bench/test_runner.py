"""dev.bench.runner: the files that it writes, and its exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from core.settings import Settings
from dev.bench import runner
from dev.bench.report import Section
from dev.bench.runner import Step
from dev.stack.environment import GivenSettings

pytestmark = pytest.mark.unit

Measure = Callable[[Settings, Step], Awaitable[Section]]


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a report of its own; return the report's file."""
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "REPORT", tmp_path / "benchmarks.md")
    monkeypatch.setattr(runner, "FILES", tmp_path / "benchmarks")
    monkeypatch.setitem(runner.BENCHMARKS, "good", measuring())
    monkeypatch.setitem(runner.BENCHMARKS, "bad", measuring("a [room] was left"))
    return tmp_path / "benchmarks.md"


def measuring(*failures: str) -> Measure:
    async def measure(_: Settings, step: Step) -> Section:
        step(1, 1)
        name = "bad" if failures else "good"
        command = f"python -m dev.bench {name}"
        samples = {"took": [1.0, 2.0]}
        return Section(name, command, ("",), [("1",)], samples=samples, failures=failures)

    return measure


def run(names: list[str], *, into_report: bool = True) -> int:
    return asyncio.run(runner.run(GivenSettings(), names, into_report=into_report))


def test_what_is_measured_is_written(report: Path) -> None:
    assert run(["good"]) == 0
    assert "## good" in report.read_text()
    assert {path.name for path in runner.FILES.iterdir()} == {"good.json", "good.svg"}


def test_a_failure_is_the_exit_code_and_costs_no_other_benchmark(
    report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bad", "good"]) == 1
    assert "## bad" in report.read_text() and "## good" in report.read_text()
    assert "failed: a [room] was left" in capsys.readouterr().out


def test_the_report_can_be_left_alone(report: Path) -> None:
    assert run(["good"], into_report=False) == 0
    assert not report.exists() and not runner.FILES.exists()
