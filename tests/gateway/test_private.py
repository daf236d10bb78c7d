"""Tests of gateway._private: they fail if a library changes a private part that it uses."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import aiohttp
import aiosqlite
import pytest
from aiohttp import web

from gateway import _private

pytestmark = pytest.mark.unit


class Connection(web.RequestHandler):
    """Records the count of requests whenever data arrives, before the data is parsed."""

    made: list[dict[str, Any]] = []
    seen: list[tuple[int, bool]] = []

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.made.append(options)

    def data_received(self, data: bytes) -> None:
        self.seen.append(_private.requests_of(self))
        super().data_received(data)


async def test_a_runner_makes_the_connections_it_is_told_to() -> None:
    during: list[tuple[int, bool]] = []

    async def hello(request: web.Request) -> web.Response:
        assert isinstance(request.protocol, Connection)
        during.append(_private.requests_of(request.protocol))
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    Connection.made, Connection.seen = [], []
    runner = _private.Runner(app, Connection, keepalive_timeout=7.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        async with aiohttp.ClientSession() as session:
            for _ in range(2):
                async with session.get(f"http://{host}:{port}/") as response:
                    assert await response.text() == "hello"
    finally:
        await runner.cleanup()
    (options,) = Connection.made
    assert options["keepalive_timeout"] == 7.0 and options["loop"] is not None
    assert Connection.seen == [(0, False), (1, False)]
    assert during == [(1, True), (2, True)]


async def test_work_in_a_connections_thread(tmp_path: Path) -> None:
    connection = aiosqlite.connect(tmp_path / "a.db")
    _private.dies_with_the_process(connection)
    async with connection:
        where, answer = await _private.in_thread(
            connection,
            lambda: (
                threading.current_thread(),
                _private.opened(connection).execute("SELECT 1").fetchone(),
            ),
        )
    assert answer == (1,)
    assert where is not threading.current_thread() and where.daemon
    with pytest.raises(ValueError, match="no active connection"):
        _private.opened(connection)
