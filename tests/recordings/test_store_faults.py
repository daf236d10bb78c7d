"""Recordings on their way into a real S3 server that is stopped, or that the network is cut to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from core.models import CallEvent
from core.recordings.plan import RecordingPlan
from recordings import stores
from recordings.spool import RecordingFile
from recordings.stores import Stores
from recordings.upload import Sweeper
from tests.support.line import Line
from tests.support.s3_server import BUCKET, S3Server, serving

pytestmark = pytest.mark.store


class Reports(list[CallEvent]):
    async def __call__(self, call_id: str, event: CallEvent, /) -> None:
        self.append(event)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"connect_timeout": timedelta(seconds=1), "timeout": timedelta(seconds=1)}
    monkeypatch.setattr(stores, "_CLIENT", short)
    monkeypatch.setattr(stores, "_RETRIES", {"max_retries": 0})


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with serving(tmp_path) as server:
        yield server


def recorded(directory: Path, seconds: int) -> bytes:
    plan = RecordingPlan(key="_/call_1.wav")
    file = RecordingFile.create(directory, "call_1", plan)
    noise = np.random.default_rng(1).integers(-9000, 9000, (seconds * 16_000, 2), dtype=np.int16)
    file.append(noise)
    file.close()
    return (directory / "call_1.wav").read_bytes()


def objects(server: S3Server) -> dict[str, bytes]:
    root = server.folder / BUCKET
    found = (path for path in root.rglob("*") if path.is_file() and ".sgwtmp" not in path.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


async def test_a_store_that_was_stopped_gets_the_recording_when_it_is_back(
    tmp_path: Path, server: S3Server
) -> None:
    spool, reports = tmp_path / "spool", Reports()
    content = recorded(spool, 3)
    sweeper = Sweeper(spool, Stores.from_settings(server.settings()), reports)
    await server.stop()
    for _ in range(2):
        assert not await sweeper.sweep()
    assert not reports and (spool / "call_1.json").exists()
    await server.start()
    assert await sweeper.sweep()
    assert [event.type for event in reports] == ["recording.stored"]
    assert objects(server) == {"calls/_/call_1.wav": content}
    assert not list(spool.iterdir())


@pytest.mark.parametrize("seconds", [10, 200], ids=["one request", "parts"])
async def test_a_network_that_is_cut_during_the_upload_leaves_no_half_object(
    tmp_path: Path, server: S3Server, seconds: int
) -> None:
    spool, reports = tmp_path / "spool", Reports()
    content = recorded(spool, seconds)
    async with Line.to(server.port) as line:
        settings = server.settings(aws_endpoint_url=line.url)
        sweeper = Sweeper(spool, Stores.from_settings(settings), reports)
        line.cut_after = len(content) // 2
        assert not await sweeper.sweep()
        assert line.carried > len(content) // 2
        assert not reports and "calls/_/call_1.wav" not in objects(server)
        line.mend()
        # The request that was cut may still be arriving, and then creates the object.
        for _ in range(100):
            if await sweeper.sweep():
                break
            await asyncio.sleep(0.1)
        assert [event.type for event in reports] == ["recording.stored"]
        assert objects(server) == {"calls/_/call_1.wav": content}
