"""Recordings that are in S3, sealed with our own key: served, drawn, deleted."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.keys import RECORDINGS
from tests.support.inprocess import Running, running, settings_in
from tests.support.recordings import Recorded, recorded_call, tone, wav
from tests.support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

pytestmark = [pytest.mark.store, pytest.mark.asyncio(loop_scope="session")]

AUDIO = wav(tone(20), tone(20, 880))  # of several sealed chunks


@dataclass(frozen=True)
class InS3:
    recorded: Recorded
    file: Path
    server: S3Server


async def stored(gateway: Running, server: S3Server, tmp_path: Path) -> InS3:
    recorded = await recorded_call(gateway, AUDIO)
    source = tmp_path / "source.wav"
    source.write_bytes(AUDIO)
    store = gateway.app[RECORDINGS].stores.of(None)
    await store.put(recorded.key, source, sha256=recorded.stored["sha256"])
    status, body = await recorded.report(encrypted=True)
    assert status == 200, body
    return InS3(recorded, server.folder / BUCKET / "calls" / recorded.key, server)


@pytest_asyncio.fixture(loop_scope="session")
async def in_s3(s3_server: S3Server, tmp_path: Path) -> AsyncIterator[InS3]:
    settings = settings_in(
        tmp_path,
        recordings_url=f"s3://{BUCKET}/calls",
        recordings_key=base64.b64encode(bytes(range(32))).decode(),
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        aws_region="us-east-1",
        aws_endpoint_url=s3_server.endpoint,
    )
    async with running(settings) as gateway:
        yield await stored(gateway, s3_server, tmp_path)


async def test_it_is_opened_for_the_listener_only(in_s3: InS3) -> None:
    assert AUDIO[44:100] not in in_s3.file.read_bytes()
    answer = await in_s3.recorded.get()
    assert (answer.status, answer.body) == (200, AUDIO)
    part = await in_s3.recorded.get(headers={"Range": "bytes=600000-900000"})
    assert (part.status, part.body) == (206, AUDIO[600_000:900_001])
    assert (await in_s3.recorded.get("?format=ogg")).body.startswith(b"OggS")
    assert max((await in_s3.recorded.get("/peaks")).json()["caller"]) == 0.5


async def test_it_is_deleted(in_s3: InS3) -> None:
    assert (await in_s3.recorded.delete()).status == 200
    assert not in_s3.file.exists()
    assert (await in_s3.recorded.get()).status == 410


@pytest.mark.attack
async def test_an_object_put_in_its_place_is_not_served(in_s3: InS3) -> None:
    in_s3.file.write_bytes(wav(tone(20, 100), tone(20, 100)))
    answer = await in_s3.recorded.get()
    assert (answer.status, answer.code) == (503, "RECORDINGS_UNAVAILABLE")
