"""Recordings whose processes are killed, whose disk is full, and which several processes upload.

Each ends as one object under its final name, with all audio that ``append`` had returned for, and
as one event.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from core.models import CallEvent
from core.settings import Settings
from recordings.stores import Stores
from recordings.upload import Sweeper
from recordings.wav import blocks
from tests.recordings.crashes import audio

pytestmark = pytest.mark.store


def events(timeline: Path) -> list[dict[str, Any]]:
    """Return the events as a timeline keeps them: one for each id."""
    lines = [json.loads(line) for line in timeline.read_text().splitlines()]
    return list({event["id"]: event for event in reversed(lines)}.values())


def stored_in(folder: Path) -> set[str]:
    """Return all files of the store, with those that are not of a recording."""
    store = folder / "store"
    return {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("format", "count"), [("wav", 40), ("ogg", 10)])
def test_killed_at_a_random_point_each_recording_is_stored_once(
    tmp_path: Path, format: str, count: int
) -> None:
    seed = random.randrange(1_000_000)
    print("seed:", seed)  # pytest shows it with a failure
    arguments = ["kill", str(tmp_path), format, str(seed), str(count)]
    found = subprocess.run(
        [sys.executable, "-m", "tests.recordings.crashes", *arguments],
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    results = [json.loads(line) for line in found.stdout.splitlines()]
    print("killed during:", Counter(result["step"] for result in results))
    assert len(results) == count
    expected = set()
    for result in results:
        assert result["status"] == 0, result
        number = result["seed"]
        assert not list((tmp_path / f"spool_{number}").glob("call_*")), result
        timeline = tmp_path / f"{number}.timeline"
        if not timeline.exists():  # killed before the recording had a file
            assert result["acknowledged"] == 0
            continue
        [event] = events(timeline)
        if event["type"] == "recording.failed":
            assert (event["data"], result["acknowledged"]) == (
                {"reason": "nothing was recorded"},
                0,
            )
            continue
        assert event["type"] == "recording.stored"
        key, frames = event["data"]["key"], event["data"]["durationMs"] * 16
        expected.add(key)
        assert frames >= result["acknowledged"], result
        path = tmp_path / "store" / key
        assert path.stat().st_size == event["data"]["bytes"]
        if format == "wav":
            pcm = np.concatenate(list(blocks(path)))
            assert 0 <= len(pcm) - frames < 16
            assert np.array_equal(pcm, audio(number)[: len(pcm)])
        else:
            with av.open(str(path)) as container:
                samples = sum(frame.samples for frame in container.decode(audio=0))
            assert 0 <= samples - 3 * frames < 3 * 16
    assert stored_in(tmp_path) == expected


def test_processes_that_sweep_at_once_report_each_recording_once(tmp_path: Path) -> None:
    arguments = ["sweep", str(tmp_path), "20"]
    subprocess.run(
        [sys.executable, "-m", "tests.recordings.crashes", *arguments], timeout=60, check=True
    )
    lines = (tmp_path / "timeline").read_text().splitlines()
    reported = [json.loads(line)["id"] for line in lines]
    assert sorted(reported) == sorted(f"call_{number}_recording.stored" for number in range(20))
    assert stored_in(tmp_path) == {f"_/call_{number}.wav" for number in range(20)}


_UNTIL_FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from recordings.spool import RecordingFile
from tests.recordings.crashes import audio, plan_of

# The kernel refuses to let a file grow beyond this, as it does on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
file = RecordingFile.create(Path(sys.argv[1]), "call_1", plan_of(1, "wav"))
failures = 0
for block in np.split(audio(1), 25):
    try:
        file.append(block)
    except OSError:
        failures += 1  # the call goes on
print(file.frames, failures)
file.close()
"""


class Reports(list[CallEvent]):
    async def __call__(self, call_id: str, event: CallEvent, /) -> None:
        self.append(event)


async def test_what_was_written_before_the_disk_was_full_is_stored(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    found = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _UNTIL_FULL, str(spool)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    frames, failures = map(int, found.stdout.split())
    assert 20_000 < frames < 25_000 and failures == 25 - frames // 1600
    stores = Stores.from_settings(Settings(data_dir=tmp_path, recordings_url=f"file://{tmp_path}"))
    reports = Reports()
    assert await Sweeper(spool, stores, reports).sweep()
    assert [event.type for event in reports] == ["recording.stored"]
    pcm = np.concatenate(list(blocks(tmp_path / "_" / "call_1.wav")))
    assert np.array_equal(pcm, audio(1)[:frames])
