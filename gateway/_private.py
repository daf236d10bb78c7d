"""The private parts of aiohttp and aiosqlite that the gateway uses.

Each has a test in tests/gateway/test_private.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

import aiosqlite
from aiohttp import web

T = TypeVar("T")


class Runner(web.AppRunner):
    """An AppRunner whose connections are made by ``connection``: aiohttp has no setting for it."""

    def __init__(
        self, app: web.Application, connection: Callable[..., web.RequestHandler], **options: Any
    ) -> None:
        super().__init__(app, **options)
        self._connection = connection

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            self._connection,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )


class _Server(web.Server):
    def __init__(
        self, handler: Any, connection: Callable[..., web.RequestHandler], **options: Any
    ) -> None:
        super().__init__(handler, **options)
        self._connection = connection

    def __call__(self) -> web.RequestHandler:
        return self._connection(self, loop=self._loop, **self._kwargs)


def requests_of(connection: web.RequestHandler) -> tuple[int, bool]:
    """How many requests a connection has begun to serve, and whether one is being served."""
    return connection._request_count, connection._request_in_progress


def dies_with_the_process(connection: aiosqlite.Connection) -> None:
    """Do not wait for the connection's thread (not begun) when the process ends."""
    connection._thread.daemon = True


def opened(connection: aiosqlite.Connection) -> sqlite3.Connection:
    """The connection that the thread owns. Raises ValueError when it is closed."""
    return connection._conn


async def in_thread(connection: aiosqlite.Connection, work: Callable[[], T]) -> T:
    """The result of ``work``, done in the connection's thread."""
    result: T = await connection._execute(work)  # type: ignore[no-untyped-call]
    return result
