"""The database itself: SQLite for one machine, PostgreSQL for a fleet, the same code on both.

``Database`` opens it and hands out connections for reading and for writing; the stores
(core.store, core.agents, core.numbers, core.credentials) are what is kept in it. Every read
that serves a caller takes a ``Scope``, so a query without a tenant cannot be written by
accident. Failures of the database come out as ``Unavailable`` (503); nothing else is translated.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import ColumnElement, Select, event, func, select, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from core import migrations
from core import sqlite as core_sqlite
from core.errors import Unavailable

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Self = TypeVar("_Self")


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose rows a query may see; ``None`` is the unscoped operator, who sees all."""

    auth_id: str | None

    def owns(self, column: Any) -> ColumnElement[bool]:
        """The condition on a table's ``auth_id`` column."""
        return true() if self.auth_id is None else column == self.auth_id


def whole(
    operation: Callable[Concatenate[_Self, _P], Awaitable[_T]],
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]]:
    """Let an operation finish even when its caller is cancelled, who then waits for it.

    A transaction cut off in the middle would keep SQLite's write lock, and its
    connection, until somebody notices.
    """

    async def finished(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        task = asyncio.ensure_future(operation(self, *args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise

    functools.update_wrapper(finished, operation)
    return finished


class Database:
    """Open with ``Database.open``."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._postgres = engine.dialect.name == "postgresql"
        # SQLite has one writer at a time; queueing here is fairer than its busy loop.
        self._write_lock = asyncio.Lock()

    @classmethod
    async def open(cls, url: str) -> Database:
        """Connect and bring the schema up to date. Raises Unavailable, ValueError (bad URL)."""
        database = cls(_engine(url))
        try:
            await database._upgrade()
        except BaseException:
            await database.close()
            raise
        return database

    @whole
    async def _upgrade(self) -> None:
        async with self.write() as connection:
            await connection.run_sync(migrations.upgrade)

    async def close(self) -> None:
        await self._engine.dispose()

    @whole
    async def ping(self) -> None:
        async with self.read() as connection:
            await connection.execute(select(1))

    def insert(self, table: type[Any]) -> Any:
        """INSERT with the ON CONFLICT that both databases know."""
        return postgresql.insert(table) if self._postgres else sqlite.insert(table)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        with _translated():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end of the block."""
        with _translated():
            if self._postgres:
                async with self._engine.begin() as connection:
                    yield connection
                return
            async with self._write_lock, self._engine.connect() as connection:
                # Taking SQLite's write lock first: a transaction that starts by
                # reading could otherwise fail when it begins to write.
                await connection.execution_options(sqlite_begin="BEGIN IMMEDIATE")
                async with connection.begin():
                    yield connection

    async def page(
        self, query: Select[Any], *, newest: tuple[Any, ...], limit: int, offset: int
    ) -> tuple[list[Any], int]:
        """Rows of ``query`` ordered by ``newest`` (descending), and how many there are in all."""
        ordered = query.order_by(*(column.desc() for column in newest))
        async with self.read() as connection:
            total = await connection.scalar(select(func.count()).select_from(query.subquery()))
            rows = (await connection.execute(ordered.limit(limit).offset(offset))).mappings().all()
        return list(rows), total or 0


class _translated:
    """Turns a failing database into Unavailable; a plain context manager, safe in async code."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, IntegrityError):
            return
        if isinstance(error, DBAPIError | PoolTimeout | OSError):
            raise Unavailable(
                "The database is unavailable", code="STORE_UNAVAILABLE", retry_after_s=2
            ) from error


def _engine(url: str) -> AsyncEngine:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Their messages may quote the password.
        raise ValueError("DATABASE_URL is not the address of a database") from None
    match parsed.get_backend_name():
        case "sqlite":
            path = parsed.database
            if path and path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            engine = create_async_engine(
                parsed.set(drivername="sqlite+aiosqlite"),
                async_creator=partial(core_sqlite.connect, path or ":memory:", timeout_s=5),
            )
            event.listen(engine.sync_engine, "connect", _sqlite_connected)
            event.listen(engine.sync_engine, "begin", _sqlite_begin)
            return engine
        case "postgresql" | "postgres":
            return create_async_engine(
                parsed.set(drivername="postgresql+asyncpg"),
                pool_size=10,
                max_overflow=10,
                pool_timeout=5,
                pool_pre_ping=True,
                connect_args={"timeout": 5, "command_timeout": 10},
            )
    raise ValueError("DATABASE_URL must be sqlite:///… or postgresql://…")


def _sqlite_connected(connection: Any, _record: object) -> None:
    # Leave transactions to us (the driver would begin them late), keep readers and
    # the writer apart (WAL), and let a power cut lose the last moment, never the file.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Any) -> None:
    # A statement that only reads is a transaction by itself.
    if (begin := connection.get_execution_options().get("sqlite_begin")) is not None:
        connection.exec_driver_sql(begin)
