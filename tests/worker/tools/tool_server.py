"""A server that custom tools ask."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from worker.tools.http import MAX_RESPONSE_BYTES


class Server:
    """A server that answers by path and records its requests."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, dict[str, str], Any, dict[str, str]]] = []
        self.headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
        self.keys: list[str] = []
        self.hang = asyncio.Event()
        self.was_asked = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        headers = {name: request.headers.get(name, "") for name in ("X-Call-Id", "X-Tool-Name")}
        self.was_asked.set()
        self.asked.append((request.method, dict(request.query), body, headers))
        self.headers = request.headers
        self.keys.append(request.headers.get("Idempotency-Key", ""))
        match request.path:
            case "/ok":
                return web.json_response({"free": True})
            case "/echo":
                return web.json_response({"got": body, "query": dict(request.query)})
            case "/empty":
                return web.Response(status=204)
            case "/error":
                return web.Response(status=500, text="secret stack trace")
            case "/long":
                return web.Response(body=b"x" * (MAX_RESPONSE_BYTES + 1))
            case "/full":
                return web.Response(body=b"x" * MAX_RESPONSE_BYTES)
            case "/bomb":
                response = web.Response(body=gzip.compress(b" " * 10_000_000))
                response.headers["Content-Encoding"] = "gzip"
                return response
            case "/moved":
                raise web.HTTPFound("/ok")
            case _:
                await self.hang.wait()
                return web.Response()


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{name}", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    server.hang.set()
    await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server
