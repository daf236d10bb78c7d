"""SQLite off the event loop, with one round trip to its thread for each statement.

aiosqlite runs each step of a statement (opening a cursor, executing, fetching rows, closing) as a
separate job in the connection's thread, and SQLAlchemy uses all of them. Most of the time of a
request to the gateway went into waking threads. Here a statement and its rows are one job, and a
rollback outside a transaction is none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import aiosqlite

from gateway._private import dies_with_the_process, in_thread, opened


async def connect(path: str, *, timeout_s: float) -> Connection:
    """Open a database; ``timeout_s`` limits the wait for another connection's lock."""
    connection = Connection(partial(sqlite3.connect, path, timeout=timeout_s), iter_chunk_size=64)
    dies_with_the_process(connection)  # as SQLAlchemy does with its connections
    await connection
    return connection


class Connection(aiosqlite.Connection):
    # Each is written by one thread only: _asked by the event loop's, _done by the connection's.
    _asked = _done = 0

    def cursor(self) -> Cursor:  # type: ignore[override]
        return Cursor(self)

    async def rollback(self) -> None:
        # A job whose caller was cancelled may still be about to begin a transaction.
        if self._asked != self._done or self.in_transaction:
            await super().rollback()

    async def at_once(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Run ``work`` as one job in the connection's thread, and return its result."""

        def step() -> Any:
            try:
                return work(opened(self))
            finally:
                self._done += 1

        self._asked += 1
        return await in_thread(self, step)


class Cursor:
    """The subset of an async cursor that SQLAlchemy uses; execute fetches all rows at once."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def execute(self, operation: str, parameters: Sequence[Any] = ()) -> Self:
        return await self._run(lambda cursor: cursor.execute(operation, parameters))

    async def executemany(self, operation: str, parameters: Sequence[Sequence[Any]]) -> Self:
        return await self._run(lambda cursor: cursor.executemany(operation, parameters))

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Do nothing: the real cursor was closed in its thread."""

    async def _run(self, statement: Callable[[sqlite3.Cursor], Any]) -> Self:
        def step(connection: sqlite3.Connection) -> None:
            cursor = connection.cursor()
            try:
                statement(cursor)
                self.description, self.rowcount = cursor.description, cursor.rowcount
                self.lastrowid = cursor.lastrowid
                self._rows = cursor.fetchall() if cursor.description else []
            finally:
                cursor.close()

        await self._connection.at_once(step)
        return self
