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
    """An AppRunner that creates connections with ``connection``; aiohttp has no setting for it."""

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
    """Return the number of requests that the connection has begun to serve, and if one is now."""
    return connection._request_count, connection._request_in_progress


def dies_with_the_process(connection: aiosqlite.Connection) -> None:
    """Let the process end without waiting for the connection's thread, which must not run yet."""
    connection._thread.daemon = True


def opened(connection: aiosqlite.Connection) -> sqlite3.Connection:
    """Return the connection that the thread owns. Raises ValueError if it is closed."""
    return connection._conn


async def in_thread(connection: aiosqlite.Connection, work: Callable[[], T]) -> T:
    """Run ``work`` in the connection's thread and return its result."""
    result: T = await connection._execute(work)  # type: ignore[no-untyped-call]
    return result
