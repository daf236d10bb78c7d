"""Tests of recordings.upload: what is stored is reported and removed, what is not is kept."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from core.models import CallEvent
from core.recordings.config import Format, Region
from core.recordings.plan import RecordingPlan
from recordings.errors import AlreadyThere, StoreRefused, StoreUnavailable
from recordings.spool import RecordingFile, Spooled
from recordings.upload import Later, Never, Sweeper, sweep_recordings
from recordings.wav import Frames, blocks

pytestmark = pytest.mark.unit


class FakeStore:
    """A store that remembers what it has, or fails as told."""

    seals = False

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.fault: Exception | None = None

    async def put(self, key: str, path: Path, *, sha256: str) -> None:
        self.puts.append(key)
        if self.fault is not None:
            raise self.fault
        content = await asyncio.to_thread(path.read_bytes)
        assert hashlib.sha256(content).hexdigest() == sha256
        if self.objects.setdefault(key, content) != content:
            raise AlreadyThere(key)


class FakeStores:
    def __init__(self) -> None:
        self.regions: dict[Region | None, FakeStore] = {None: FakeStore(), "eu": FakeStore()}

    def of(self, region: Region | None) -> FakeStore:
        return self.regions[region]


class Timeline:
    def __init__(self) -> None:
        self.events: list[tuple[str, CallEvent]] = []
        self.fault: Exception | None = None

    async def __call__(self, call_id: str, event: CallEvent, /) -> None:
        if self.fault is not None:
            raise self.fault
        if event.id not in {known.id for _, known in self.events}:
            self.events.append((call_id, event))

    @property
    def types(self) -> list[str]:
        return [event.type for _, event in self.events]


@pytest.fixture
def stores() -> FakeStores:
    return FakeStores()


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


@pytest.fixture
def sweeper(tmp_path: Path, stores: FakeStores, timeline: Timeline) -> Sweeper:
    return Sweeper(tmp_path, stores, timeline)  # type: ignore[arg-type]


def recorded(
    directory: Path,
    call_id: str = "call_1",
    *,
    seconds: float = 1.0,
    format: Format = "wav",
    region: Region | None = None,
) -> Frames:
    frames = np.zeros((round(seconds * 16_000), 2), np.int16)
    frames[:, 0] = np.random.default_rng(1).integers(-9000, 9000, len(frames))
    plan = RecordingPlan(key=f"_/2026/01/31/{call_id}.{format}", format=format, region=region)
    file = RecordingFile.create(directory, call_id, plan)
    file.append(frames)
    file.close()
    return frames


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def test_a_recording_is_stored_reported_and_removed(
    tmp_path: Path, sweeper: Sweeper, stores: FakeStores, timeline: Timeline
) -> None:
    frames = recorded(tmp_path, seconds=1.5)
    content = (tmp_path / "call_1.wav").read_bytes()
    assert await sweeper.sweep()
    assert stores.of(None).objects == {"_/2026/01/31/call_1.wav": content}
    [(call_id, event)] = timeline.events
    assert (call_id, event.id, event.type) == (
        "call_1",
        "call_1_recording.stored",
        "recording.stored",
    )
    assert event.data == {
        "key": "_/2026/01/31/call_1.wav",
        "region": None,
        "format": "wav",
        "bytes": 80 + 4 * len(frames),
        "sha256": hashlib.sha256(content).hexdigest(),
        "durationMs": 1500,
        "encrypted": False,
    }
    assert not names(tmp_path)


async def test_a_recording_in_progress_is_left_alone(
    tmp_path: Path, sweeper: Sweeper, stores: FakeStores
) -> None:
    file = RecordingFile.create(tmp_path, "call_1", RecordingPlan(key="a.wav"))
    file.append(np.ones((100, 2), np.int16))
    assert await sweeper.sweep()
    assert not stores.of(None).puts
    file.close()
    assert await sweeper.sweep()
    assert stores.of(None).objects.keys() == {"a.wav"}


async def test_ogg_has_both_channels_apart_and_the_length_to_a_sample(
    tmp_path: Path, sweeper: Sweeper, stores: FakeStores, timeline: Timeline
) -> None:
    frames = recorded(tmp_path, seconds=2.01, format="ogg")
    assert await sweeper.sweep()
    [(key, content)] = stores.of(None).objects.items()
    assert key.endswith(".ogg") and timeline.events[0][1].data["durationMs"] == 2010
    (tmp_path / "a.ogg").write_bytes(content)
    with av.open(str(tmp_path / "a.ogg")) as container:
        pcm = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    assert pcm.shape == (2, 3 * len(frames))  # Opus is decoded at 48 kHz
    caller, agent = np.sqrt((pcm**2).mean(axis=1))
    assert caller > 0.05 and agent < caller / 10_000
    assert names(tmp_path) == {"a.ogg"}


async def test_ogg_is_encoded_once_so_that_a_second_put_is_of_the_same_content(
    tmp_path: Path, sweeper: Sweeper, stores: FakeStores, timeline: Timeline
) -> None:
    recorded(tmp_path, format="ogg")
    timeline.fault = Later("gateway away")
    assert not await sweeper.sweep()
    # As another release of the encoder would have made it.
    (tmp_path / "call_1.ogg").write_bytes(b"OggS")
    stores.of(None).objects["_/2026/01/31/call_1.ogg"] = b"OggS"
    timeline.fault = None
    assert await sweeper.sweep()
    assert timeline.types == ["recording.stored"]


async def test_a_full_disk_while_encoding_only_delays(
    tmp_path: Path, sweeper: Sweeper, timeline: Timeline
) -> None:
    recorded(tmp_path, format="ogg")
    (tmp_path / "call_1.tmp").mkdir()  # any OSError will do
    assert not await sweeper.sweep()
    assert not timeline.types
    (tmp_path / "call_1.tmp").rmdir()
    assert await sweeper.sweep()
    assert timeline.types == ["recording.stored"]


async def test_a_store_that_is_away_gets_it_later(
    tmp_path: Path, sweeper: Sweeper, stores: FakeStores, timeline: Timeline
) -> None:
    recorded(tmp_path)
    stores.of(None).fault = StoreUnavailable("no route")
    assert not await sweeper.sweep()
    assert names(tmp_path) == {"call_1.json", "call_1.wav"} and not timeline.events
    stores.of(None).fault = None
    assert await sweeper.sweep()
    assert timeline.types == ["recording.stored"] and not names(tmp_path)


async def test_a_region_whose_store_is_away_is_asked_once_and_delays_no_other(
    tmp_path: Path, sweeper: Sweeper, stores: FakeStores, timeline: Timeline
) -> None:
    for call_id in ("call_1", "call_2"):
        recorded(tmp_path, call_id, region="eu")
    recorded(tmp_path, "call_3")
    stores.of("eu").fault = StoreUnavailable("no route")
    assert not await sweeper.sweep()
    assert len(stores.of("eu").puts) == 1
    assert [call_id for call_id, _ in timeline.events] == ["call_3"]


async def test_a_recording_that_fails_waits_behind_the_others(
    tmp_path: Path, sweeper: Sweeper, stores: FakeStores
) -> None:
    recorded(tmp_path, "call_1")
    stores.of(None).fault = StoreUnavailable("too large for a slow line")
    assert not await sweeper.sweep()
    recorded(tmp_path, "call_2")
    assert not await sweeper.sweep()
    assert [Path(key).stem for key in stores.of(None).puts] == ["call_1", "call_2"]


async def test_a_store_that_refuses_may_be_mended_for_a_day(
    tmp_path: Path, sweeper: Sweeper, stores: FakeStores, timeline: Timeline
) -> None:
    recorded(tmp_path)
    stores.of(None).fault = StoreRefused("the store refused our credentials")
    assert not await sweeper.sweep()
    stores.of(None).fault = None
    assert await sweeper.sweep()
    assert timeline.types == ["recording.stored"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (StoreRefused("HTTP 403"), "refused by the store"),
        (AlreadyThere("a.wav"), "the store has another recording of this name"),
    ],
)
async def test_a_recording_that_cannot_be_stored_is_kept_aside(
    tmp_path: Path,
    sweeper: Sweeper,
    stores: FakeStores,
    timeline: Timeline,
    fault: Exception,
    reason: str,
) -> None:
    frames = recorded(tmp_path)
    os.utime(tmp_path / "call_1.wav", times=(yesterday := time.time() - 25 * 3600, yesterday))
    stores.of(None).fault = fault
    assert await sweeper.sweep()
    [(_, event)] = timeline.events
    assert (event.type, event.data) == ("recording.failed", {"reason": reason})
    assert names(tmp_path) == {"call_1.rejected", "call_1.wav"}
    assert np.array_equal(next(blocks(tmp_path / "call_1.wav")), frames)
    # The operator mends the store, and tries again.
    stores.of(None).fault = None
    (tmp_path / "call_1.rejected").rename(tmp_path / "call_1.json")
    assert await sweeper.sweep()
    assert timeline.types == ["recording.failed", "recording.stored"]


async def test_a_recording_of_a_call_that_the_gateway_does_not_know_is_kept_aside(
    tmp_path: Path, sweeper: Sweeper, timeline: Timeline
) -> None:
    recorded(tmp_path)
    timeline.fault = Never("HTTP 404")
    assert await sweeper.sweep()
    assert names(tmp_path) == {"call_1.rejected", "call_1.wav"}


@pytest.mark.parametrize("audio", [True, False], ids=["empty", "no file"])
async def test_nothing_recorded_is_a_failure_without_an_object(
    tmp_path: Path, sweeper: Sweeper, stores: FakeStores, timeline: Timeline, audio: bool
) -> None:
    recorded(tmp_path, seconds=0)
    if not audio:
        (tmp_path / "call_1.wav").unlink()
    assert await sweeper.sweep()
    assert not stores.of(None).puts and not names(tmp_path)
    assert timeline.events[0][1].data == {"reason": "nothing was recorded"}


async def test_two_sweepers_at_once_store_once(
    tmp_path: Path, stores: FakeStores, timeline: Timeline
) -> None:
    for number in range(20):
        recorded(tmp_path, f"call_{number}", seconds=0.1)
    sweepers = [Sweeper(tmp_path, stores, timeline) for _ in range(2)]  # type: ignore[arg-type]
    assert all(await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers)))
    assert len(stores.of(None).puts) == len(timeline.events) == 20
    assert not names(tmp_path)


async def test_one_broken_recording_does_not_stop_the_others(
    tmp_path: Path, sweeper: Sweeper, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(tmp_path, "call_1")
    recorded(tmp_path, "call_2")
    real = Spooled.adopt

    def adopt(path: Path) -> Spooled | None:
        if path.stem == "call_1":
            raise RuntimeError("a bug")
        return real(path)

    monkeypatch.setattr(Spooled, "adopt", adopt)
    assert not await sweeper.sweep()
    assert [call_id for call_id, _ in timeline.events] == ["call_2"]


async def test_the_delay_between_attempts_grows_while_a_store_is_away(
    tmp_path: Path, stores: FakeStores, timeline: Timeline
) -> None:
    recorded(tmp_path)
    stores.of(None).fault = StoreUnavailable("no route")
    delays: list[float] = []

    async def pause(delay: float) -> None:
        delays.append(delay)
        if len(delays) == 6:
            stores.of(None).fault = None
        if len(delays) == 8:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await sweep_recordings(tmp_path, stores, timeline, pause=pause)  # type: ignore[arg-type]
    assert delays == [2, 4, 8, 16, 30, 30, 1, 1]


def test_only_the_encoder_loads_the_codecs() -> None:
    code = "import sys, recordings.upload; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
