"""The recording of a call whose agent was replaced: two objects, one recording."""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.models import CallEvent
from core.recordings.plan import object_key
from gateway.keys import RECORDINGS
from gateway.recordings.retention import Retention
from tests.conftest import operator
from tests.support.inprocess import Running, running, settings_in
from tests.support.recordings import RATE, Recorded, end, recorded_call, tone, wav

pytestmark = pytest.mark.store

SECOND = np.zeros(RATE, np.int16)
# The first agent hears a tone for a second, and is lost; the second one speaks in the third.
FIRST = wav(tone(1), SECOND)
NEXT = wav(np.zeros(3 * RATE, np.int16), np.concatenate([SECOND, SECOND, tone(1, 880, 0.25)]))


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path)) as started:
        yield started


async def lose_agent(recorded: Recorded) -> None:
    lost = CallEvent(type="agent.lost", data={"epoch": 0, "why": "killed"})
    await recorded.gateway.store.append(recorded.call.id, [lost], "gateway")


def part_of(recorded: Recorded, audio: bytes) -> Recorded:
    call = recorded.call
    key = object_key(call.id, "acme", call.created_at, "wav", 1)
    return replace(recorded, key=key, audio=audio)


async def store(part: Recorded, folder: Path, number: int) -> tuple[int, Any]:
    """Put a part into the store, and tell of it as its worker does."""
    await part.put(folder)
    more = {"part": number} if number else {}
    event = CallEvent(
        id=f"{part.call.id}_stored{number}", type="recording.stored", data={**part.stored, **more}
    )
    return await part.tell(event)


async def started(recorded: Recorded, times: int) -> None:
    for _ in range(times):
        await recorded.tell(CallEvent(type="recording.started", data={"format": "wav"}))


async def two_parts(gateway: Running, folder: Path, *, order: tuple[int, int] = (0, 1)) -> Recorded:
    first = await recorded_call(gateway, FIRST)
    parts = {0: first, 1: part_of(first, NEXT)}
    await started(first, 2)
    await lose_agent(first)
    for number in order:
        assert (await store(parts[number], folder, number))[0] == 200
    await end(first)
    return first


def samples(body: bytes) -> NDArray[np.int16]:
    with wave.open(io.BytesIO(body), "rb") as file:
        return np.frombuffer(file.readframes(10**7), np.int16).reshape(-1, 2)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_they_are_heard_as_one(
    gateway: Running, tmp_path: Path, order: tuple[int, int]
) -> None:
    recorded = await two_parts(gateway, tmp_path, order=order)
    answer = await recorded.get()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "audio/wav")
    heard = samples(answer.body)
    assert len(heard) == 3 * RATE
    assert np.array_equal(heard[:RATE, 0], tone(1))
    assert np.array_equal(heard[2 * RATE :, 1], tone(1, 880, 0.25))
    assert not heard[RATE : 2 * RATE].any()
    part = await recorded.get("", {"Range": "bytes=1000-1999"})
    assert (part.status, part.body) == (206, answer.body[1000:2000])
    assert part.headers["ETag"] == answer.headers["ETag"]
    assert (await recorded.get("?format=ogg")).body.startswith(b"OggS")
    levels = (await recorded.get("/peaks?width=3")).json()
    assert levels["durationMs"] == 3000
    assert [level > 0.1 for level in levels["caller"]] == [True, False, False]
    assert [level > 0.1 for level in levels["agent"]] == [False, False, True]
    shown = await recorded.shown()
    assert shown["recordingAvailable"] is True


async def test_it_is_ready_when_all_parts_are_stored(gateway: Running, tmp_path: Path) -> None:
    first = await recorded_call(gateway, FIRST)
    await started(first, 2)
    await lose_agent(first)
    await store(first, tmp_path, 0)
    assert (await first.get()).code == "RECORDING_NOT_READY"  # the call goes on
    await end(first)
    assert (await first.get()).code == "RECORDING_NOT_READY"
    await store(part_of(first, NEXT), tmp_path, 1)
    assert (await first.get()).status == 200


async def test_a_part_that_never_comes_is_not_waited_for(gateway: Running, tmp_path: Path) -> None:
    first = await recorded_call(gateway, FIRST)
    await started(first, 2)
    await lose_agent(first)
    await store(first, tmp_path, 0)
    await end(first)
    gateway.clock.forward(timedelta(minutes=11))
    assert (await first.get()).body == FIRST


async def test_of_the_second_agent_only(gateway: Running, tmp_path: Path) -> None:
    """The first one's disk was lost."""
    first = await recorded_call(gateway, FIRST)
    await started(first, 2)
    await lose_agent(first)
    await store(part_of(first, NEXT), tmp_path, 1)
    await end(first)
    gateway.clock.forward(timedelta(minutes=11))
    assert (await first.get()).body == NEXT


async def test_an_agent_that_nobody_sent_has_no_part(gateway: Running, tmp_path: Path) -> None:
    first = await recorded_call(gateway, FIRST)
    for number in (1, 2, -1, 101, "x"):
        data = {**part_of(first, NEXT).stored, "part": number}
        status, _ = await first.tell(CallEvent(type="recording.stored", data=data))
        assert status == 422
    await lose_agent(first)
    data = {**first.stored, "part": 1}  # under the first one's name
    assert (await first.tell(CallEvent(type="recording.stored", data=data)))[0] == 422


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / "recordings").rglob("*") if path.is_file()]


async def test_both_are_deleted(gateway: Running, tmp_path: Path) -> None:
    recorded = await two_parts(gateway, tmp_path)
    assert len(files(tmp_path)) == 2
    assert (await recorded.delete()).status == 200
    assert not files(tmp_path)
    assert (await recorded.get()).status == 410
    assert len(await recorded.events("recording.deleted")) == 1


async def test_a_part_that_comes_after_the_deletion_is_deleted(
    gateway: Running, tmp_path: Path
) -> None:
    first = await recorded_call(gateway, FIRST)
    await lose_agent(first)
    await store(first, tmp_path, 0)
    assert (await first.delete()).status == 200
    assert (await store(part_of(first, NEXT), tmp_path, 1))[0] == 200
    assert not files(tmp_path)


async def test_retention_deletes_both(gateway: Running, tmp_path: Path) -> None:
    first = await recorded_call(gateway, FIRST, retention_days=1)
    await lose_agent(first)
    await store(first, tmp_path, 0)
    await store(part_of(first, NEXT), tmp_path, 1)
    gateway.clock.forward(timedelta(days=2))
    assert await Retention(gateway.app[RECORDINGS]).round() == 1
    assert not files(tmp_path)


async def test_both_are_exported(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    settings = settings_in(tmp_path, recordings_export_urls=(f"file://{exports}",))
    async with running(settings) as gateway:
        recorded = await two_parts(gateway, tmp_path)
        gateway.clock.forward(timedelta(minutes=1))
        body = {"destination": f"file://{exports}/acme"}
        path = "/v1/recordings/export"
        async with gateway.http.post(path, json=body, headers=operator()) as answer:
            made = await answer.json()
            assert answer.status == 202, made
            job = made["id"]
        async with asyncio.timeout(20):
            while True:
                async with gateway.http.get(f"{path}/{job}", headers=operator()) as answer:
                    if (found := await answer.json())["status"] == "completed":
                        break
                await asyncio.sleep(0.1)
    assert (found["total"], found["done"], found["failed"]) == (1, 1, 0)
    copied = sorted(path.name for path in exports.rglob("*.wav"))
    assert copied == [f"{recorded.call.id}.part1.wav", f"{recorded.call.id}.wav"]
