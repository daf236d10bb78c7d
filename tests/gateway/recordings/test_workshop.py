"""Conversions: who gets a place, and what is kept of them."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import IO, Any, cast

import pytest

from core.errors import Unavailable
from core.models import new_id
from gateway.recordings import audio
from gateway.recordings.kept import Kept, Key
from gateway.recordings.service import RecordingService
from gateway.recordings.workshop import Workshop
from gateway.store.recordings.recordings import StoredRecording
from tests.support.recordings import tone, wav
from tests.support.small_disk import SmallDisk
from tests.support.small_disk import disk as disk

pytestmark = pytest.mark.unit

RECORDING = StoredRecording(
    call_id="call_1",
    auth_id="acme",
    region=None,
    key="a.wav",
    format="wav",
    bytes=5,
    sha256="",
    duration_ms=0,
    encrypted=False,
    stored_at=datetime.now(UTC),
    expires_at=None,
)
AUDIO = wav(tone(2), tone(2))
WHOLE = RECORDING.model_copy(update={"bytes": len(AUDIO), "duration_ms": 2000})
OGG: Key = ("call_1", "ogg")


class Conversions:
    """Stored recordings, and a converter that counts."""

    def __init__(self) -> None:
        self.made = 0

    async def read(
        self, recording: StoredRecording, start: int, end: int
    ) -> AsyncGenerator[bytes, None]:
        yield b"audio"

    def convert(self, source: IO[bytes], stored: str, target: IO[bytes], format: str) -> None:
        self.made += 1
        target.write(source.read())
        target.flush()


class Stored:
    """A stored recording, and the real converter."""

    async def read(
        self, recording: StoredRecording, start: int, end: int
    ) -> AsyncGenerator[bytes, None]:
        yield AUDIO[start:end]


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> Conversions:
    conversions = Conversions()
    monkeypatch.setattr(audio, "convert", conversions.convert)
    return conversions


def workshop(conversions: Conversions | Stored, **values: Any) -> Workshop:
    return Workshop(cast(RecordingService, conversions), **values)


async def test_a_tenant_leaves_as_many_places_as_it_has(conversions: Conversions) -> None:
    shop = workshop(conversions, files=8)

    async def places(tenant: str | None, stack: AsyncExitStack) -> int:
        """Take as many as there are."""
        for number in range(9):
            changes = {"auth_id": tenant, "call_id": new_id("call")}
            recording = RECORDING.model_copy(update=changes)
            try:
                await stack.enter_async_context(shop.converted(recording, "ogg"))
            except Unavailable:
                return number
        raise AssertionError("there is no limit")

    async with AsyncExitStack() as stack:
        taken = [await places(tenant, stack) for tenant in ("acme", "rival", None, "fourth")]
    assert taken == [4, 2, 1, 1]
    async with AsyncExitStack() as stack:
        assert await places("rival", stack) == 4
    shop.close()


async def test_readers_of_kept_files_have_places_too(conversions: Conversions) -> None:
    shop = workshop(conversions, files=8)
    async with AsyncExitStack() as stack:
        for number in range(4):
            recording = RECORDING.model_copy(update={"call_id": f"call_{number}"})
            async with shop.converted(recording, "ogg"):
                pass
            await stack.enter_async_context(shop.converted(recording, "ogg"))
        with pytest.raises(Unavailable, match="Too many"):
            await stack.enter_async_context(shop.converted(recording, "ogg"))
    assert conversions.made == 4
    async with shop.converted(recording, "ogg"):
        pass
    shop.close()


@pytest.mark.parametrize(("encrypted", "made"), [(False, 1), (True, 2)])
async def test_only_what_is_not_encrypted_is_kept(
    conversions: Conversions, encrypted: bool, made: int
) -> None:
    shop = workshop(conversions)
    recording = RECORDING.model_copy(update={"encrypted": encrypted})
    for _ in range(2):
        async with shop.converted(recording, "ogg") as file:
            assert file.seek(0) == 0 and file.read() == b"audio"
    assert conversions.made == made
    shop.close()


@pytest.mark.parametrize("leave", [0, len(AUDIO) // 2, len(AUDIO) * 3 // 2])
async def test_a_disk_without_space_is_busy(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, leave: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    disk.fill(leave)
    shop = workshop(Stored())
    for _ in range(17):
        with pytest.raises(Unavailable, match="no space"):
            async with shop.converted(WHOLE, "wav"):
                pass
    disk.relieve()
    async with shop.converted(WHOLE, "wav") as file:
        assert os.fstat(file.fileno()).st_size >= len(AUDIO)
    shop.close()


def filled(kept: Kept, *keys: Key) -> None:
    for key in keys:
        with tempfile.TemporaryFile() as file:
            file.write(key[0].encode())
            file.flush()
            kept.add(key, file)


async def test_the_oldest_makes_room_and_is_still_read() -> None:
    kept = Kept(files=2)
    filled(kept, ("a", "ogg"), ("b", "ogg"))
    oldest = kept.take(("b", "ogg"))
    newest = kept.take(("a", "ogg"))
    assert oldest is not None and newest is not None
    with oldest, newest:
        filled(kept, ("c", "ogg"))
        assert kept.take(("b", "ogg")) is None
        oldest.seek(0)
        assert oldest.read() == b"b"
    kept.close()


async def test_a_file_is_dropped_when_nobody_asks_for_it() -> None:
    kept = Kept(for_s=0)
    filled(kept, OGG)
    file = kept.take(OGG)
    assert file is not None
    file.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert kept.take(OGG) is None
