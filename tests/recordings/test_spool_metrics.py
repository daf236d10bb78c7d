"""Tests of recordings.spool_metrics: how many recordings wait on the disk, and their size."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from core.recordings.plan import RecordingPlan
from recordings.spool import RecordingFile
from recordings.spool_metrics import SpoolCollector

pytestmark = pytest.mark.unit


def test_spooled_recordings_and_their_bytes_are_counted_when_scraped(tmp_path: Path) -> None:
    directory, registry = tmp_path / "recordings", CollectorRegistry()
    registry.register(SpoolCollector(directory))

    def values() -> tuple[float | None, ...]:
        name = "switchroom_recordings_spooled"
        states = ({"state": "waiting"}, {"state": "rejected"})
        counts = [registry.get_sample_value(name, labels) for labels in states]
        return (*counts, registry.get_sample_value(name + "_bytes"))

    assert values() == (0, 0, 0)
    RecordingFile.create(directory, "call_1", RecordingPlan(key="a.wav")).close()
    RecordingFile.create(directory, "call_2", RecordingPlan(key="b.wav")).close()
    assert values() == (2, 0, 160)
    (directory / "call_2.json").rename(directory / "call_2.rejected")
    assert values() == (1, 1, 160)
