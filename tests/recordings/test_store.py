"""recordings.store on files and on a real S3-speaking server, plain and sealed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.settings import Settings
from gateway.recordings.destinations import Destination
from recordings.errors import AlreadyThere, SealBroken, StoreRefused, StoreUnavailable
from recordings.sealing import CHUNK, HEADER
from recordings.store import PART, RecordingStore
from recordings.stores import Stores
from tests.support.s3_server import BUCKET, S3Server, serving

pytestmark = pytest.mark.store

KEYS = [base64.b64encode(bytes([n]) * 32).decode() for n in range(3)]


@dataclass
class Rig:
    settings: Settings
    folder: Path
    """Where the objects are as files."""

    @property
    def store(self) -> RecordingStore:
        return Stores.from_settings(self.settings).of(None)

    def with_keys(self, *keys: str) -> RecordingStore:
        changed = Settings.model_validate(
            {**self.settings.model_dump(), "recordings_key": ",".join(keys) or None}
        )
        return Stores.from_settings(changed).of(None)

    def files(self) -> set[str]:
        return {
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()
        }


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    if request.param == "file":
        folder = tmp_path / "a store"
        folder.mkdir()
        return Rig(
            Settings(_env_file=None, recordings_url=f"file://{tmp_path}/store"), tmp_path / "store"
        )
    server: S3Server = request.getfixturevalue("s3_server")
    prefix = uuid.uuid4().hex
    settings = server.settings(recordings_url=f"s3://{BUCKET}/{prefix}")
    return Rig(settings, server.folder / BUCKET / prefix)


@pytest.fixture(params=["plain", "sealed"])
def rig(request: pytest.FixtureRequest, place: Rig) -> Rig:
    if request.param == "sealed":
        values = {**place.settings.model_dump(), "recordings_key": KEYS[0]}
        place.settings = Settings.model_validate(values)
    return place


def content(size: int, seed: int = 1) -> bytes:
    return (seed.to_bytes(3, "big") + os.urandom(1021)) * (size // 1024 + 1)


def written(path: Path, data: bytes) -> tuple[Path, str]:
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


async def put(store: Destination, key: str, data: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    sha256 = hashlib.sha256(data).hexdigest()
    await store.put_chunks(key, chunks(), size=len(data), sha256=sha256)


async def whole(
    store: RecordingStore, key: str, start: int = 0, end: int | None = None, **options: bool
) -> bytes:
    return b"".join([block async for block in store.read(key, start, end, **options)])


@pytest.mark.parametrize("size", [0, 44, CHUNK, CHUNK + 1, 3 * CHUNK, 2 * PART + 12_345])
async def test_what_is_put_is_read(rig: Rig, tmp_path: Path, size: int) -> None:
    data = content(size)[:size]
    path, sha256 = written(tmp_path / "recording", data)
    store = rig.store
    assert await store.size("t-a~2e/2026/01/31/call_1.wav") is None
    await store.put("t-a~2e/2026/01/31/call_1.wav", path, sha256=sha256)
    assert await store.size("t-a~2e/2026/01/31/call_1.wav") == size
    assert await whole(store, "t-a~2e/2026/01/31/call_1.wav") == data
    assert rig.files() == {"t-a~2e/2026/01/31/call_1.wav"}
    sealed = rig.settings.recordings_key is not None
    on_disk = (rig.folder / "t-a~2e/2026/01/31/call_1.wav").read_bytes()
    assert (on_disk == data) != sealed


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 1),
        (CHUNK - 1, CHUNK + 1),
        (CHUNK, 2 * CHUNK),
        (17 * CHUNK + 5, 33 * CHUNK - 5),
        (40 * CHUNK + 1, None),
        (40 * CHUNK, 10**9),
        (10**9, None),
        (5, 5),
    ],
)
async def test_ranges(rig: Rig, start: int, end: int | None) -> None:
    data = content(40 * CHUNK + 77)[: 40 * CHUNK + 77]
    await put(rig.store, "a.wav", data)
    assert await whole(rig.store, "a.wav", start, end) == data[start:end]


@pytest.mark.parametrize("size", [1000, PART + 1000])
async def test_an_object_is_created_once(rig: Rig, size: int) -> None:
    first, other = content(size), content(size, 2)
    await put(rig.store, "a.wav", first)
    await put(rig.store, "a.wav", first)
    with pytest.raises(AlreadyThere):
        await put(rig.store, "a.wav", other)
    assert await whole(rig.store, "a.wav") == first
    assert rig.files() == {"a.wav"}


@pytest.mark.parametrize("size", [1000, PART + 1000])
async def test_of_several_uploads_one_wins(rig: Rig, size: int) -> None:
    contents = [content(size, number) for number in range(4)]
    results = await asyncio.gather(
        *(put(rig.store, "a.wav", data) for data in contents), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["AlreadyThere"] * 3 + [
        "NoneType"
    ]
    assert await whole(rig.store, "a.wav") == contents[results.index(None)]


@pytest.mark.parametrize("size", [1000, PART + 1000])
@pytest.mark.parametrize("wrong", ["checksum", "size"])
async def test_a_file_that_is_not_the_told_one_is_not_stored(
    rig: Rig, tmp_path: Path, size: int, wrong: str
) -> None:
    data = content(size)
    path, sha256 = written(tmp_path / "recording", data)
    with pytest.raises(StoreRefused, match="checksum"):
        if wrong == "checksum":
            await rig.store.put("a.wav", path, sha256="0" * 64)
        else:

            async def chunks() -> AsyncIterator[bytes]:
                yield data

            await rig.store.put_chunks("a.wav", chunks(), size=len(data) + 1, sha256=sha256)
    assert rig.files() == set()


async def test_deletion(rig: Rig) -> None:
    await put(rig.store, "a/b.wav", b"data" * 100)
    await rig.store.delete("a/b.wav")
    assert rig.files() == set()
    assert await rig.store.size("a/b.wav") is None
    await rig.store.delete("a/b.wav")


async def is_missing(store: RecordingStore) -> None:
    with pytest.raises(StoreUnavailable):
        await store.delete("a.wav")
    with pytest.raises(StoreUnavailable):
        await whole(store, "a.wav")


async def test_a_disk_that_is_not_mounted_has_deleted_nothing(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, recordings_url=f"file://{tmp_path}/disk")
    store = Stores.from_settings(settings).of(None)
    await put(store, "a.wav", b"data")
    (tmp_path / "disk").rename(tmp_path / "elsewhere")
    await is_missing(store)
    # The process is started meanwhile, or the folder is the mount point.
    await is_missing(Stores.from_settings(settings).of(None))
    (tmp_path / "disk").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "disk")
    await store.delete("absent.wav")
    await store.delete("a.wav")
    assert not (tmp_path / "disk" / "a.wav").exists()


async def test_a_bucket_that_is_missing_has_deleted_nothing(s3_server: S3Server) -> None:
    bucket = s3_server.folder / s3_server.bucket("moved")
    store = Stores.from_settings(s3_server.settings(recordings_url="s3://moved/calls")).of(None)
    await put(store, "a.wav", b"data")
    bucket.rename(bucket.with_name("elsewhere"))
    await is_missing(store)
    bucket.with_name("elsewhere").rename(bucket)
    await store.delete("absent.wav")
    await store.delete("a.wav")
    assert not (bucket / "calls" / "a.wav").exists()


async def test_files_are_for_their_owner_whatever_the_umask(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, recordings_url=f"file://{tmp_path}/new/store")
    before = os.umask(0)
    try:
        await put(Stores.from_settings(settings).of(None), "a/b.wav", content(1000))
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "new").rglob("*")}
    assert modes.pop("b.wav") == "0o600"
    assert set(modes.values()) == {"0o700"}


# --- sealed objects


async def test_every_key_opens_and_the_first_one_seals(place: Rig) -> None:
    await put(place.with_keys(KEYS[0]), "old.wav", b"old" * 1000)
    rotated = place.with_keys(KEYS[1], KEYS[0])
    await put(rotated, "new.wav", b"new" * 1000)
    assert await whole(rotated, "old.wav") == b"old" * 1000
    assert await whole(place.with_keys(KEYS[1]), "new.wav") == b"new" * 1000
    with pytest.raises(SealBroken, match=r"RECORDINGS_KEY has no key [0-9a-f]{16}"):
        await whole(place.with_keys(KEYS[1]), "old.wav")
    with pytest.raises(SealBroken, match="RECORDINGS_KEY is not set"):
        await whole(place.with_keys(), "old.wav")


async def test_a_sealed_object_is_not_replaced_by_a_plain_one(place: Rig) -> None:
    await put(place.with_keys(), "a.wav", b"forged" * 100)
    store = place.with_keys(KEYS[0])
    assert await whole(store, "a.wav") == b"forged" * 100
    with pytest.raises(SealBroken):
        await whole(store, "a.wav", must_be_sealed=True)


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


_SEALED = CHUNK + 16


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[: HEADER + 2 * _SEALED], id="truncated at a chunk"),
        pytest.param(lambda data: data[:-1], id="truncated"),
        pytest.param(lambda data: data + b"x", id="longer"),
        pytest.param(lambda data: data + data[HEADER : HEADER + _SEALED], id="a chunk more"),
        pytest.param(
            lambda data: (
                data[:HEADER]
                + data[HEADER + _SEALED : HEADER + 2 * _SEALED]
                + data[HEADER : HEADER + _SEALED]
                + data[HEADER + 2 * _SEALED :]
            ),
            id="reordered",
        ),
        pytest.param(lambda data: _flip(data, HEADER + 5), id="a bit of the first chunk"),
        pytest.param(lambda data: _flip(data, len(data) - 1), id="a bit of the last tag"),
        pytest.param(lambda data: _flip(data, 5), id="the key's id"),
        pytest.param(lambda data: _flip(data, 13), id="the salt"),
        pytest.param(lambda data: _flip(data, HEADER - 1), id="the length"),
        pytest.param(
            # One chunk less, and the length in the header says so.
            lambda data: (
                data[: HEADER - 8]
                + (2 * CHUNK).to_bytes(8, "big")
                + data[HEADER : HEADER + 2 * _SEALED]
            ),
            id="truncated with its length",
        ),
    ],
)
async def test_a_changed_object_is_refused(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    settings = Settings(
        _env_file=None, recordings_url=f"file://{tmp_path}/store", recordings_key=KEYS[0]
    )
    store = Stores.from_settings(settings).of(None)
    await put(store, "a.wav", content(3 * CHUNK)[: 3 * CHUNK - 100])
    path = tmp_path / "store" / "a.wav"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SealBroken):
        await whole(store, "a.wav")


async def test_an_object_under_another_name_is_refused(tmp_path: Path) -> None:
    settings = Settings(
        _env_file=None, recordings_url=f"file://{tmp_path}/store", recordings_key=KEYS[0]
    )
    store = Stores.from_settings(settings).of(None)
    await put(store, "a.wav", content(1000))
    (tmp_path / "store" / "a.wav").rename(tmp_path / "store" / "b.wav")
    with pytest.raises(SealBroken):
        await whole(store, "b.wav")


# --- a store that fails


async def test_a_wrong_secret_is_refused(s3_server: S3Server) -> None:
    store = Stores.from_settings(s3_server.settings(aws_secret_access_key="wrong")).of(None)
    with pytest.raises(StoreRefused, match="credentials"):
        await put(store, "a.wav", b"data")
    with pytest.raises(StoreRefused, match="credentials"):
        await store.size("a.wav")


async def test_a_bucket_that_does_not_exist_is_refused(s3_server: S3Server) -> None:
    store = Stores.from_settings(s3_server.settings(recordings_url="s3://absent")).of(None)
    with pytest.raises(StoreRefused, match="bucket"):
        await put(store, "a.wav", b"data")


@pytest.mark.parametrize("size", [1000, PART + 1000])
async def test_a_store_that_was_away(tmp_path: Path, size: int) -> None:
    data = content(size)
    async with serving(tmp_path) as server:
        store = Stores.from_settings(server.settings()).of(None)
        await server.stop()
        with pytest.raises(StoreUnavailable):
            await put(store, "a.wav", data)
        await server.start()
        await put(store, "a.wav", data)
        assert await whole(store, "a.wav") == data
        await server.stop()
        with pytest.raises(StoreUnavailable):
            await whole(store, "a.wav")


async def test_a_broken_off_upload_is_repeated(place: Rig) -> None:
    data = content(3 * PART)
    started = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield data[: 2 * PART]
        started.set()
        await asyncio.Event().wait()

    sha256 = hashlib.sha256(data).hexdigest()
    upload = asyncio.create_task(
        place.store.put_chunks("a.wav", chunks(), size=len(data), sha256=sha256)
    )
    await started.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert "a.wav" not in place.files()
    await put(place.store, "a.wav", data)
    assert await whole(place.store, "a.wav") == data
