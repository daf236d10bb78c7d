"""A load balancer: one address, and connections go to the first of several ports that answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from core.tasks.first_of import first_of

HOST = "127.0.0.1"


class Balancer:
    """``connections`` is how many are open now."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.ports = list(ports)
        self.port = 0
        self._open: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @contextlib.asynccontextmanager
    async def serve(self, port: int) -> AsyncIterator[Balancer]:
        server = await asyncio.start_server(self._accept, HOST, port)
        self.port = port
        try:
            yield self
        finally:
            server.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection, as a network that fails."""
        for task in self._open:
            task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            for port in self.ports:
                with contextlib.suppress(ConnectionError):
                    there, back = await asyncio.open_connection(HOST, port)
                    writers.append(back)
                    await first_of(_pipe(reader, back), _pipe(there, writer))
                    return
        finally:
            for each in writers:
                each.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
