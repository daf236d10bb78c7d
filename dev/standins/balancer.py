"""A load balancer: one address in front of several ports of this machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

import aiohttp

from core.tasks.first_of import first_of

HOST = "127.0.0.1"
_CHECK_EVERY_S: Final = 0.5
_CHECK_TIMEOUT_S: Final = 1.0


class Balancer:
    """A new connection goes to the first port that can be connected.

    With ``check``, a path, connections go in turn to the ports that last answered it with 200.
    They are asked every half second.
    """

    def __init__(self, ports: Sequence[int], *, check: str | None = None) -> None:
        self.ports = list(ports)
        self.port = 0
        self._check = check
        self._turn = 0
        self._healthy: list[int] = []
        self._open: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @contextlib.asynccontextmanager
    async def serve(self, port: int) -> AsyncIterator[Balancer]:
        server = await asyncio.start_server(self._accept, HOST, port)
        self.port = port
        checking = asyncio.create_task(self._keep_checking(self._check)) if self._check else None
        try:
            yield self
        finally:
            server.close()
            if checking is not None:
                self._open.add(checking)
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
            for port in self._candidates():
                with contextlib.suppress(ConnectionError):
                    there, back = await asyncio.open_connection(HOST, port)
                    writers.append(back)
                    await first_of(_pipe(reader, back), _pipe(there, writer))
                    return
        finally:
            for each in writers:
                each.transport.abort()

    def _candidates(self) -> list[int]:
        if self._check is None:
            return list(self.ports)
        self._turn += 1
        first = self._turn % max(1, len(self._healthy))
        return [*self._healthy[first:], *self._healthy[:first]]

    async def _keep_checking(self, path: str) -> None:
        timeout = aiohttp.ClientTimeout(total=_CHECK_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:

            async def answers(port: int) -> bool:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with http.get(f"http://{HOST}:{port}/{path}") as answer:
                        return answer.status == 200
                return False

            while True:
                found = await asyncio.gather(*map(answers, self.ports))
                self._healthy = [port for port, up in zip(self.ports, found, strict=True) if up]
                await asyncio.sleep(_CHECK_EVERY_S)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
