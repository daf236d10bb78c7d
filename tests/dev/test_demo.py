"""The picture of the demo's output."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev import demo
from dev.stack.checklist import Checklist
from dev.stack.component import Progress, State

pytestmark = pytest.mark.unit


def test_the_picture_has_each_line_once_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    console = demo._recording_console()
    with Checklist(console) as checklist:
        checklist(Progress("gateway", State.READY, 1.0))
        console.print("[green]succeeded[/]")  # draws a live list again
    demo._draw(console, tmp_path / "demo.svg")
    svg = (tmp_path / "demo.svg").read_text()
    assert svg.count("gateway") == svg.count("succeeded") == 1
    assert "@font-face" not in svg and "url(http" not in svg and 'url("http' not in svg
    assert "succeeded" in capsys.readouterr().out


def test_the_readmes_picture_is_a_demo_that_succeeded() -> None:
    svg = (Path(__file__).parents[2] / "docs" / "demo.svg").read_text()
    assert svg.count("✓") == 5 and "✗" not in svg
    assert "@font-face" not in svg and len(svg) < 60_000
