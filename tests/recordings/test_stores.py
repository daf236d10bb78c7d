"""recordings.stores: one store per region, and settings that name stores and keys."""

from __future__ import annotations

import asyncio
import base64
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.recordings.config import Region
from core.settings import Settings
from recordings.errors import StoreError, StoreMissing
from recordings.stores import Stores
from tests.recordings.test_store import put, whole
from tests.support.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.store

KEY = base64.b64encode(bytes(32)).decode()


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


async def test_without_settings_recordings_are_below_data_dir(tmp_path: Path) -> None:
    store = Stores.from_settings(settings(data_dir=tmp_path / "a b%20#?")).of(None)
    await put(store, "a.wav", b"data")
    assert (tmp_path / "a b%20#?" / "recordings" / "a.wav").read_bytes() == b"data"


@pytest.mark.parametrize("region", ["eu", "us", "in"])
def test_a_region_without_a_store_gets_no_others(tmp_path: Path, region: Region) -> None:
    others = {
        f"recordings_url_{name}": f"file://{tmp_path}/{name}"
        for name in ("eu", "us", "in")
        if name != region
    }
    stores = Stores.from_settings(settings(recordings_url=f"file://{tmp_path}/none", **others))
    assert not stores.has(region)
    with pytest.raises(StoreMissing, match=f"RECORDINGS_URL_{region.upper()} is not set"):
        stores.of(region)
    assert not list(tmp_path.iterdir())


@contextmanager
def counting() -> Iterator[tuple[int, queue.Queue[object]]]:
    """Yield a port that is listened at, and the connections to it."""
    seen: queue.Queue[object] = queue.Queue()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, address = listening.accept()
                    connection.close()
                    seen.put(address)
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listening.getsockname()[1], seen
        finally:
            stop.set()
            thread.join()


async def test_another_regions_store_sees_no_connection(s3_server: S3Server) -> None:
    with counting() as (port, seen):
        away = f"s3://{BUCKET}?endpoint=http://127.0.0.1:{port}"
        stores = Stores.from_settings(
            s3_server.settings(
                recordings_url=away,
                recordings_url_us=away,
                recordings_url_in=away,
                recordings_url_eu=f"s3://{BUCKET}/eu?region=eu-central-1"
                f"&endpoint={s3_server.endpoint}",
                aws_endpoint_url=f"http://127.0.0.1:{port}",
            )
        )
        # The server is in us-east-1, and says so to a signature for another region.
        with pytest.raises(StoreError):
            await put(stores.of("eu"), "a.wav", b"data")
        assert seen.empty()
        eu = f"s3://{BUCKET}/eu?endpoint={s3_server.endpoint}"
        stores = Stores.from_settings(
            s3_server.settings(recordings_url_us=away, recordings_url_eu=eu)
        )
        await put(stores.of("eu"), "a.wav", b"data")
        assert await whole(stores.of("eu"), "a.wav") == b"data"
        assert seen.empty()
        with socket.create_connection(("127.0.0.1", port)):
            assert await asyncio.to_thread(seen.get, timeout=10)


@pytest.mark.parametrize(
    "url",
    [
        "file:///srv/recordings",
        "file:///srv/recordings/",
        "s3://bucket",
        "s3://bucket/",
        "s3://my.bucket-1/a/b_c/",
        "s3://bucket/a?region=eu-central-1",
        "s3://bucket?endpoint=https://s3.example.com:9000&region=x1",
        "s3://bucket/..a/.b",
    ],
)
def test_a_stores_address(url: str) -> None:
    assert settings(recordings_url=url).recordings_url == url
    assert settings(recordings_export_urls=f"{url},{url}").recordings_export_urls == (url, url)


@pytest.mark.parametrize(
    "url",
    [
        "/srv/recordings",
        "file://srv/recordings",
        "file:///",
        "file:///a/../b",
        "file:///a/..",
        "file:///a?region=x",
        "file:///a//b",
        "s3:/bucket",
        "S3://bucket",
        "s3://",
        "s3://Bucket",
        "s3://user:password@bucket",
        "s3://bucket:9000/a",
        "s3://bucket/a/./b",
        "s3://bucket/../other",
        "s3://bucket/%2e%2e/other",
        "s3://bucket/a#b",
        "s3://bucket/a b",
        "s3://bucket?secret=1",
        "s3://bucket?endpoint=https://user:password@host",
        "s3://bucket?endpoint=file:///a",
        "https://s3.example.com/bucket",
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "recordings_url",
        "recordings_url_eu",
        "recordings_url_us",
        "recordings_url_in",
        "recordings_export_urls",
    ],
)
def test_a_mistyped_address_is_told_at_the_start(name: str, url: str) -> None:
    with pytest.raises(ValidationError, match="must be like file:///path or s3://bucket/prefix"):
        settings(**{name: url})


def test_keys() -> None:
    assert settings(recordings_key=f"{KEY}, {KEY}").recordings_key is not None


@pytest.mark.parametrize("key", ["secret", KEY[:-4], f"{KEY},{KEY}x", "ä", KEY + KEY])
def test_mistyped_keys_are_told_at_the_start_and_not_shown(key: str) -> None:
    with pytest.raises(ValidationError, match="must be keys of 32 bytes in base64") as raised:
        settings(recordings_key=key)
    assert key not in str(raised.value)
