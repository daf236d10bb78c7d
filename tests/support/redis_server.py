"""A redis-server for tests, and a proxy to it that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dev.standins import databases
from dev.standins.databases import HOST as HOST


@asynccontextmanager
async def redis_server(folder: Path) -> AsyncIterator[int]:
    """Yield the port of an empty server; skip the test if Redis is not installed."""
    try:
        with databases.redis_server(folder) as server:
            yield urlsplit(server.url).port or 0
    except databases.NotInstalled as missing:
        pytest.skip(str(missing))


class Line:
    """A proxy between a cache and its server: open, or silent (accepts bytes, forwards none)."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._ends: set[asyncio.StreamWriter] = set()
        self._opened = asyncio.Event()
        self._opened.set()
        self.port = 0
        self.connections = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Line]:
        server = await asyncio.start_server(self._connected, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            self._opened.set()
            await server.wait_closed()

    def silence(self) -> None:
        """Forward nothing from now on, without closing a connection."""
        self._opened.clear()

    def cut(self) -> None:
        """Abort all connections."""
        for end in self._ends:
            end.transport.abort()

    def restore(self) -> None:
        """Forward new connections again; bytes sent during the silence are lost."""
        self.cut()
        self._opened.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._ends.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            far_reader, far = await asyncio.open_connection(HOST, self._target)
            self._ends.add(far)
            await asyncio.gather(self._copy(reader, far), self._copy(far_reader, writer))
        except OSError:
            pass  # cut
        finally:
            for end in (writer, far):
                if end is not None:
                    self._ends.discard(end)
                    end.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self._opened.is_set():
                await self._opened.wait()
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError
