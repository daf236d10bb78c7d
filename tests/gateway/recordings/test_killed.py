"""A gateway that is killed again and again while it uploads a recording to an S3 server."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.models import Agent, AgentConfig, CallEvent, new_id
from core.recordings.config import Recording
from core.recordings.plan import RecordingPlan, object_key
from gateway.store.calls import NewCall
from gateway.store.database import Database
from recordings.spool import RecordingFile
from tests.gateway.store.test_outbox import Rig
from tests.support.databases import fresh_database
from tests.support.gateway_process import GatewayProcess, killable
from tests.support.line import Line
from tests.support.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.store

SECONDS = 160  # 10 MB: an upload in two parts
PREFIX = "killed"
# The object is complete under its temporary name, or under its own; the gateway is not told.
ASSEMBLED = re.compile(rb"POST \S*/uploads/\S*uploadId=")
NAMED = re.compile(rb"POST \S*/t-acme/\S*uploadId=")


@dataclass(frozen=True)
class Spooled:
    """A recording that a worker left on the gateway's disk."""

    rig: Rig
    call_id: str
    key: str
    spool: Path
    content: bytes

    async def told(self) -> list[str]:
        events = await self.rig.store.events(self.call_id)
        return [event.type for event in events if event.type.startswith("recording.")]


@asynccontextmanager
async def left_behind(folder: Path, url: str) -> AsyncIterator[Spooled]:
    database = await Database.open(url)
    try:
        rig = Rig(database)
        config = AgentConfig(name="Greeter", recording=Recording(enabled=True))
        new = NewCall(
            id=new_id("call"),
            auth_id="acme",
            direction="outbound",
            room_name=new_id("room"),
            participant_identity="caller",
            from_number="+15105550123",
            to_number="+15551234567",
            max_duration_ms=60_000,
            agent=Agent(id="greeter", version=1, config=config),
            metadata={},
            record=True,
        )
        call = await rig.store.insert_call(new, CallEvent(type="call.queued"))
        key = object_key(call.id, "acme", call.created_at, "wav")
        spool = folder / "spool" / "recordings"
        file = RecordingFile.create(spool, call.id, RecordingPlan(key=key))
        noise = np.random.default_rng(1)
        file.append(noise.integers(-9000, 9000, (SECONDS * 16_000, 2), dtype=np.int16))
        file.close()
        content = (spool / f"{call.id}.wav").read_bytes()
        yield Spooled(rig, call.id, key, spool, content)
    finally:
        await database.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (nothing to await)
            await asyncio.sleep(0.05)


async def test_another_gateway_finishes_what_a_killed_one_uploaded(
    tmp_path: Path, s3_server: S3Server, postgres: str
) -> None:
    seed = random.randrange(1_000_000)
    print("seed:", seed)
    rng = random.Random(seed)
    objects = s3_server.folder / BUCKET / PREFIX

    def stored() -> set[str]:
        return {str(path.relative_to(objects)) for path in objects.rglob("*") if path.is_file()}

    url = await fresh_database(postgres)
    values = {**s3_server.values, "recordings_url": f"s3://{BUCKET}/{PREFIX}"}

    @asynccontextmanager
    async def gateway() -> AsyncIterator[tuple[GatewayProcess, Line]]:
        async with Line.to(s3_server.port) as line:
            changes: dict[str, Any] = {**values, "aws_endpoint_url": line.url}
            async with killable(tmp_path, url, **changes) as process:
                yield process, line

    async with left_behind(tmp_path, url) as recording:

        async def cut(line: Line, point: re.Pattern[bytes] | None) -> None:
            """Wait until a line is cut that was set to be."""
            async with asyncio.timeout(30):
                await line.is_cut.wait()
            if point is NAMED:
                await until(lambda: recording.key in stored())
            else:
                assert recording.key not in stored()

        async with gateway() as uploading, gateway() as waiting:
            uploading[1].cut_after = rng.randrange(len(recording.content))
            await uploading[0].start()
            for point, following in ((None, ASSEMBLED), (ASSEMBLED, NAMED), (NAMED, None)):
                await cut(uploading[1], point)
                connections = waiting[1].connections
                await waiting[0].start()
                assert waiting[1].connections == connections  # the recording has an owner
                waiting[1].cut_at = following
                await uploading[0].process.kill()
                assert await recording.told() == []
                uploading[1].mend()
                uploading, waiting = waiting, uploading
            await until(lambda: not list(recording.spool.iterdir()))
        assert await recording.told() == ["recording.stored"]
        assert stored() == {recording.key}
        assert (objects / recording.key).read_bytes() == recording.content
