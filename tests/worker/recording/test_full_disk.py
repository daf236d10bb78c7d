"""Recorded calls on a disk that is really full."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.models import CallEvent
from core.recordings.plan import RecordingPlan
from core.settings import Settings
from recordings.spool import RecordingFile
from recordings.stores import Stores
from recordings.upload import Sweeper
from recordings.wav import Frames, blocks
from tests.support.small_disk import SmallDisk
from tests.support.small_disk import disk as disk
from tests.worker.link.test_reporter import Inbox, owned
from tests.worker.link.test_reporter import gateway as gateway
from tests.worker.link.test_reporter import inbox as inbox
from tests.worker.recording.test_recorder import Call, Written
from worker.recording import recorder

pytestmark = pytest.mark.unit


class Watched(Written):
    """A file on a disk, and what it has taken."""

    def __init__(self, spool: Path, call_id: str) -> None:
        super().__init__()
        self._open = partial(RecordingFile.create, spool, call_id, RecordingPlan(key="a.wav"))
        self.appended = threading.Event()

    def create(self) -> Written:
        self._file = self._open()
        return self

    def append(self, frames: Frames) -> None:
        self._file.append(frames)
        super().append(frames)
        self.appended.set()

    def close(self) -> None:
        self._file.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (nothing to await)
            await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_EVERY_S", 0.2)


class Reports(list[CallEvent]):
    async def __call__(self, call_id: str, event: CallEvent, /) -> None:
        self.append(event)


def call_to(file: Watched, ago_s: float = 1.0) -> Call:
    call = Call(ago_s)
    call.file, call.recorder._create = file, file.create
    return call


async def recorded(call: Call) -> None:
    call.recorder.start()
    await call.speak(1.0)
    call.played(0.0, 0.0, 1.0)


async def test_what_was_written_before_the_disk_was_full_is_stored(
    tmp_path: Path, disk: SmallDisk
) -> None:
    spool = disk.folder / "spool" / "recordings"
    file = Watched(spool, "call_1")
    call = call_to(file, ago_s=5.0)
    await recorded(call)
    assert await asyncio.to_thread(file.appended.wait, 30)
    disk.fill()
    await until(lambda: len(call.posted) == 2)
    await call.speak(0.1)  # still passes
    await call.recorder.finish("caller_hung_up")
    assert call.told == ["recording.started", "recording.failed"]
    assert call.posted[1].data == {"reason": "disk_full"}
    assert file.frames[:16_000].any()

    stores = Stores.from_settings(Settings(_env_file=None, recordings_url=f"file://{tmp_path}/s"))
    reports = Reports()
    assert await Sweeper(spool, stores, reports).sweep()
    assert [event.type for event in reports] == ["recording.stored"]
    pcm = np.concatenate(list(blocks(tmp_path / "s" / "a.wav")))
    assert np.array_equal(pcm, file.frames)
    assert not list(spool.iterdir())
    # The upload has made space: the next call is recorded.
    after = call_to(Watched(spool, "call_2"))
    await recorded(after)
    await after.recorder.finish("caller_hung_up")
    assert after.told == ["recording.started", "recording.stopped"]


async def test_a_call_that_begins_on_a_full_disk_goes_on_and_leaves_nothing(
    disk: SmallDisk, inbox: Inbox, gateway: Any
) -> None:
    events, spool = disk.folder / "spool" / "worker", disk.folder / "spool" / "recordings"
    for folder in (events, spool):
        folder.mkdir(parents=True)
    disk.fill()
    reporter = owned(gateway, events)
    reporter.post("agent.joined")
    call = call_to(Watched(spool, "call_1"), ago_s=5.0)
    await recorded(call)
    await until(lambda: len(call.posted) == 2)
    await call.recorder.finish("caller_hung_up")
    assert call.posted[1].data == {"reason": "disk_full"}
    reporter.post("agent.left")
    await reporter.aclose(5)
    assert inbox.types == ["agent.joined", "agent.left"]
    assert [*events.iterdir(), *spool.iterdir()] == []


async def test_events_on_a_full_disk_are_delivered_and_their_file_removed(
    disk: SmallDisk, inbox: Inbox, gateway: Any
) -> None:
    inbox.answers = [503] * 5
    reporter = owned(gateway, disk.folder)
    reporter.post("agent.joined")
    await until(lambda: any(path.stat().st_size for path in disk.folder.glob("*.jsonl")))
    disk.fill()
    for number in range(100):
        reporter.post("turn", {"number": number, "transcript": "x" * 100})
    await reporter.aclose(5)
    assert inbox.types == ["agent.joined", *["turn"] * 100]
    disk.relieve()
    assert not list(disk.folder.iterdir())
