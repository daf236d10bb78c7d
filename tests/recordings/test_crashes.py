"""Recordings whose processes are killed, whose disk is full, and which several processes upload.

Each ends as one object under its final name, with all audio that ``append`` had returned for, and
as one event.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import uuid
from collections import Counter
from dataclasses import dataclass, replace
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
from tests.recordings.crashes import FRAMES, audio
from tests.support.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.store


def events(timeline: Path) -> list[dict[str, Any]]:
    """Return the events as a timeline keeps them: one for each id."""
    lines = [json.loads(line) for line in timeline.read_text().splitlines()]
    return list({event["id"]: event for event in reversed(lines)}.values())


def stored_in(objects: Path) -> set[str]:
    """Return all files of the store, with those that are not of a recording."""
    return {str(path.relative_to(objects)) for path in objects.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Place:
    """A store whose objects are the files in ``objects``."""

    objects: Path
    values: dict[str, str]
    put_s: float
    """About how long an upload takes."""
    frames: int = FRAMES

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **{name.upper(): value for name, value in self.values.items()}}


def in_files(folder: Path) -> Place:
    return Place(folder / "store", {"recordings_url": f"file://{folder}/store"}, 0.02)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return in_files(tmp_path)
    server: S3Server = request.getfixturevalue("s3_server")
    prefix = uuid.uuid4().hex
    place = Place(
        server.folder / BUCKET / prefix,
        {**server.values, "recordings_url": f"s3://{BUCKET}/{prefix}"},
        0.03,
    )
    # 10 MB: more than one part.
    return place if request.param == "s3" else replace(place, put_s=0.12, frames=2_500_000)


@pytest.mark.parametrize(
    ("place", "format", "count"),
    [("file", "wav", 17), ("file", "ogg", 8), ("s3", "wav", 13), ("s3 in parts", "wav", 12)],
    indirect=["place"],
)
def test_killed_at_a_random_point_each_recording_is_stored_once(
    tmp_path: Path, place: Place, format: str, count: int
) -> None:
    seed = random.randrange(1_000_000)
    print("seed:", seed)  # pytest shows it with a failure
    how = [tmp_path, place.objects, format, seed, count, place.frames, place.put_s]
    found = subprocess.run(
        [sys.executable, "-m", "tests.recordings.crashes", "kill", *map(str, how)],
        env=place.environment,
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    results = [json.loads(line) for line in found.stdout.splitlines()]
    print("killed in:", Counter(result["step"] for result in results))
    assert len(results) == count
    expected = set()
    for result in results:
        assert (result["status"], result["half"]) == (0, False), result
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
        path = place.objects / key
        content = path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == event["data"]["sha256"]
        assert len(content) == event["data"]["bytes"]
        if format == "wav":
            pcm = np.concatenate(list(blocks(path)))
            assert 0 <= len(pcm) - frames < 16
            assert np.array_equal(pcm, audio(number, place.frames)[: len(pcm)])
        else:
            with av.open(str(path)) as container:
                samples = sum(frame.samples for frame in container.decode(audio=0))
            assert 0 <= samples - 3 * frames < 3 * 16
    assert stored_in(place.objects) == expected


def test_processes_that_sweep_at_once_report_each_recording_once(tmp_path: Path) -> None:
    place = in_files(tmp_path)
    subprocess.run(
        [sys.executable, "-m", "tests.recordings.crashes", "sweep", str(tmp_path), "20"],
        env=place.environment,
        timeout=60,
        check=True,
    )
    lines = (tmp_path / "timeline").read_text().splitlines()
    reported = [json.loads(line)["id"] for line in lines]
    assert sorted(reported) == sorted(f"call_{number}_recording.stored" for number in range(20))
    assert stored_in(place.objects) == {f"_/call_{number}.wav" for number in range(20)}


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
