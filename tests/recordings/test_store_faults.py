"""Recordings on their way into a real S3 server that is stopped, or that the network is cut to."""

from __future__ import annotations

import asyncio
import contextlib
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
from tests.support.s3_server import BUCKET, HOST, S3Server, serving

pytestmark = pytest.mark.store


class Reports(list[CallEvent]):
    async def __call__(self, call_id: str, event: CallEvent, /) -> None:
        self.append(event)


class Line:
    """A TCP proxy. Once cut it passes nothing on, and closes nothing, as a dead network does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._whole = asyncio.Event()
        self._whole.set()
        self.carried = 0
        self.cut_after: int | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(HOST, self._port)
        for pair in ((reader, forth), (back, writer)):
            task = asyncio.create_task(self._carry(*pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(sink):
            while data := await source.read(65536):
                self.carried += len(data)
                if self.cut_after is not None and self.carried > self.cut_after:
                    self._whole.clear()
                await self._whole.wait()
                sink.write(data)
                await sink.drain()

    def mend(self) -> None:
        self.cut_after = None
        self._whole.set()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


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
    line = Line(server.port)
    proxy = await asyncio.start_server(line.serve, HOST, 0)
    try:
        endpoint = f"http://{HOST}:{proxy.sockets[0].getsockname()[1]}"
        settings = server.settings(aws_endpoint_url=endpoint)
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
    finally:
        proxy.close()
        await line.aclose()
