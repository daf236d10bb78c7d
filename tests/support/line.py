"""A network that can be cut: a TCP proxy on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

HOST = "127.0.0.1"


class Line:
    """Once cut it passes nothing on, and closes nothing, as a dead network does."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self.connections = 0
        self.carried = 0
        self.cut_after: int | None = None
        """The number of bytes, of both directions, after which it is cut."""
        self.cut_at: re.Pattern[bytes] | None = None
        """The request after which it is cut: it arrives, and its response does not."""
        self.is_cut = asyncio.Event()
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._whole = asyncio.Event()
        self._whole.set()

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Line]:
        line = cls(port)
        server = await asyncio.start_server(line._serve, HOST, 0)
        line.url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
        try:
            yield line
        finally:
            server.close()
            for task in line._tasks:
                task.cancel()
            await asyncio.gather(*line._tasks, return_exceptions=True)

    def cut(self) -> None:
        self._whole.clear()
        self.is_cut.set()

    def mend(self) -> None:
        self.cut_after = self.cut_at = None
        self.is_cut.clear()
        self._whole.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
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
                    self.cut()
                await self._whole.wait()
                sink.write(data)
                await sink.drain()
                if self.cut_at is not None and self.cut_at.match(data):
                    self.cut()
