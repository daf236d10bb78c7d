"""The section on recoveries: goals, and calls that were lost."""

from __future__ import annotations

import pytest

from dev.bench.recovery.loop import Round
from dev.bench.recovery.measure import section

pytestmark = pytest.mark.unit


def rounds(*silences_ms: float | None) -> list[Round]:
    return [
        Round("job killed", f"call_{number}", ms, [] if ms else ["CallEnded"])
        for number, ms in enumerate(silences_ms)
    ]


def test_goals_that_are_met_and_missed() -> None:
    shown = section(rounds(*[1500.0] * 19, 7000.0))
    assert [note.rpartition(" ")[2] for note in shown.notes[:2]] == ["met.", "missed."]
    assert [row[0] for row in shown.rows] == ["job killed", "all"]
    assert shown.failures == []


def test_a_call_that_was_lost_is_a_failure_and_no_measurement() -> None:
    shown = section(rounds(1500.0, None))
    assert shown.failures == ["job killed, call_1: CallEnded"]
    assert "1 of 2 calls" in " ".join(shown.notes)
    assert shown.samples == {"job killed": [1500.0]}
    assert section(rounds(None)).rows == []
