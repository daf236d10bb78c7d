"""A webhook receiver on loopback, which keeps all requests and answers as configured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


Answer = Callable[[Received], Awaitable[web.StreamResponse]]


async def accept(_received: Received) -> web.StreamResponse:
    return web.Response(text="ok")


@dataclass
class Receiver:
    """``answers``: how to answer, by path; requests to other paths are accepted."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def take(self, request: web.Request) -> web.StreamResponse:
        taken = Received(request.path, dict(request.headers), await request.read())
        async with self._news:
            self.received.append(taken)
            self._news.notify_all()
        return await self.answers.get(request.path, accept)(taken)

    def at(self, path: str) -> list[Received]:
        return [each for each in self.received if each.path == path]

    async def until(self, enough: Callable[[], bool], timeout: float = 30) -> None:
        """Wait until ``enough`` returns True."""
        async with asyncio.timeout(timeout), self._news:
            await self._news.wait_for(enough)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield receiver
    finally:
        await runner.cleanup()


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def counted(
    handler: Handler,
) -> AsyncIterator[tuple[str, Callable[[], int]]]:
    """Serve ``handler`` at ``/``; yield the URL and a count of accepted connections. A client
    that disconnects cancels ``handler``."""
    app = web.Application()
    app.router.add_post("/", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    taken = 0

    def connection() -> asyncio.Protocol:
        nonlocal taken
        taken += 1
        assert runner.server is not None
        return runner.server()

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", lambda: taken
    finally:
        server.close()
        await runner.cleanup()


@asynccontextmanager
async def served(
    handler: Handler,
) -> AsyncIterator[str]:
    async with counted(handler) as (url, _):
        yield url
