"""A real S3-speaking server for tests: versitygw (Apache-2.0), with signatures, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest_asyncio

from core.settings import Settings
from dev.process import ManagedProcess, inherited_environment
from dev.setup import go_build
from dev.setup.livekit_server import default_cache
from dev.stack.ports import PORTS

HOST = "127.0.0.1"
ACCESS_KEY, SECRET_KEY = "recordings-test", "a-secret-of-the-test-only"
BUCKET = "recordings"
PROGRAM = go_build.Program("versitygw", "1.8.0", "github.com/versity/versitygw/cmd/versitygw")


class S3Server:
    """``folder`` holds the buckets as folders and the objects as files."""

    def __init__(self, process: ManagedProcess, port: int, folder: Path) -> None:
        self._process = process
        self.folder = folder
        self.endpoint = f"http://{HOST}:{port}"
        self.port = port
        self.values = {
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
            "aws_region": "us-east-1",
            "aws_endpoint_url": self.endpoint,
            "recordings_url": f"s3://{BUCKET}/calls",
        }
        """Settings whose stores are on this server."""

    def settings(self, **values: Any) -> Settings:
        return Settings(_env_file=None, **(self.values | values))

    def bucket(self, name: str) -> str:
        (self.folder / name).mkdir(exist_ok=True)
        return name

    async def start(self) -> None:
        await self._process.start()
        await self._process.wait_ready(self._answers, timeout_s=20)

    async def stop(self) -> None:
        await self._process.stop()

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[S3Server]:
    await go_build.ensure(PROGRAM, default_cache(), lambda line: print(line, file=sys.stderr))
    port = PORTS.take(HOST)
    root = folder / "buckets"
    root.mkdir()
    process = ManagedProcess(
        "versitygw",
        [
            str(PROGRAM.cached(default_cache())),
            *("--access", ACCESS_KEY, "--secret", SECRET_KEY, "--port", f"{HOST}:{port}"),
            *("posix", "--sidecar", str(folder / "sidecar"), str(root)),
        ],
        log_path=folder / "log",
        env=inherited_environment(),
        cwd=folder,
    )
    (folder / "sidecar").mkdir()
    server = S3Server(process, port, root)
    server.bucket(BUCKET)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        PORTS.give_back(port)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def s3_server(tmp_path_factory: Any) -> AsyncIterator[S3Server]:
    async with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server
