"""The database itself: SQLite for one machine, PostgreSQL for a fleet, the same code on both.

``Database`` opens it and provides connections for reading and writing. The stores
(gateway.store.calls, gateway.store.agents, gateway.store.numbers, gateway.store.credentials)
build on it. Every read on behalf of a client takes a ``Scope``, so a query without a tenant cannot
be written by accident. Database failures are raised as ``Unavailable`` (503); no other errors are
translated.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import sqlite3
import time
from collections import Counter
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

from core.errors import Unavailable
from core.models import now
from gateway.store import migrations
from gateway.store import sqlite as core_sqlite
from gateway.store.tables import ProbeRow

log = logging.getLogger(__name__)

_CONNECT_S, _CLOSE_S = 5.0, 2.0
# Short enough that API clients still wait, and get the 503.
WRITE_WAIT_S = 5.0
_COMMAND_S = 10
# Of PostgreSQL. No transaction of ours waits for anything but the database, and others wait
# _COMMAND_S for its locks.
_IDLE_MS = 4000

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Self = TypeVar("_Self")


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated sender of a request."""

    auth_id: str | None
    """The tenant; None: an unscoped operator, or anyone if authentication is off."""
    expires_at: int | None = None
    """When the token expires, in seconds since 1970; None: never (API secrets)."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The tenant whose rows a query may see; None for the unscoped operator, who sees all."""

    auth_id: str | None

    def owns(self, column: Any) -> ColumnElement[bool]:
        """Return the condition on a table's ``auth_id`` column."""
        return true() if self.auth_id is None else column == self.auth_id


def whole(
    operation: Callable[Concatenate[_Self, _P], Awaitable[_T]],
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _T]]:
    """Decorator: let an operation finish even if its caller is cancelled, and wait for it.

    A transaction that is interrupted would keep its connection and SQLite's write lock
    until the connection is cleaned up.
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


async def one_at_a_time(connection: AsyncConnection, what: str) -> None:
    """Take the lock named ``what`` until this transaction ends."""
    if connection.dialect.name == "postgresql":
        # SQLite needs no lock: it allows one writer at a time.
        key = func.hashtextextended(what, 0)
        await connection.execute(select(func.pg_advisory_xact_lock(key)))


class Database:
    """An open database; create it with ``Database.open``."""

    def __init__(self, engine: AsyncEngine, *, write_wait_s: float = WRITE_WAIT_S) -> None:
        self._engine = engine
        self.write_wait_s = write_wait_s
        self._postgres = engine.dialect.name == "postgresql"
        # SQLite has one writer at a time; queueing here is fairer than its busy loop.
        self._write_lock = asyncio.Lock()
        self._trouble = Trouble()

    @classmethod
    async def open(
        cls, url: str, *, write_wait_s: float = WRITE_WAIT_S, upgrade: bool = True
    ) -> Database:
        """Connect and bring the schema up to date. Raises Unavailable, ValueError (bad URL).

        ``upgrade=False``: leave the schema as it is.
        """
        database = cls(_engine(url), write_wait_s=write_wait_s)
        try:
            if upgrade:
                await database._upgrade()
        except BaseException:
            await database.close()
            raise
        return database

    @whole
    async def _upgrade(self) -> None:
        async with self.write(patient=True) as connection:
            await connection.run_sync(migrations.upgrade)

    async def close(self) -> None:
        await self._engine.dispose()

    @property
    def is_postgres(self) -> bool:
        return self._postgres

    @asynccontextmanager
    async def apart(self) -> AsyncIterator[Any]:
        """Yield a connection of asyncpg's own, outside the pool, closed at the end of the block.

        PostgreSQL only. Raises Unavailable.
        """
        import asyncpg  # type: ignore[import-untyped]  # not needed for SQLite

        _, where = self._engine.dialect.create_connect_args(self._engine.url)
        with self._trouble:
            try:
                connection = await asyncpg.connect(**where, timeout=_CONNECT_S)
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                raise OSError(type(error).__name__) from error
        try:
            yield connection
        finally:
            try:
                await connection.close(timeout=_CLOSE_S)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()

    @whole
    async def ping(self) -> None:
        async with self.read() as connection:
            await connection.execute(select(1))

    @whole
    async def touch(self) -> None:
        """Commit a write, since only that detects a full disk. Raises Unavailable."""
        touched = self.insert(ProbeRow).values(id=1, at=now())
        touched = touched.on_conflict_do_update(index_elements=["id"], set_={"at": now()})
        async with self.write() as connection:
            await connection.execute(touched)

    def insert(self, table: type[Any]) -> Any:
        """Return an INSERT with the ON CONFLICT clause that both databases support."""
        return postgresql.insert(table) if self._postgres else sqlite.insert(table)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        with self._trouble:
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self, *, patient: bool = False) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that is committed at the end of the block.

        On SQLite it waits ``write_wait_s`` in all for writers queued here and in other processes,
        so that all writers blocked by the same fault give up at about the same time. On PostgreSQL
        there is no queue here, and the whole transaction has twice that time. ``patient`` removes
        the limit.
        """
        with self._trouble:
            if self._postgres:
                limit = asyncio.timeout(None if patient else 2 * self.write_wait_s)
                async with limit, self._engine.begin() as connection:
                    yield connection
            else:
                async with self._one_writer(patient=patient) as connection:
                    yield connection
        self._trouble.over()

    @asynccontextmanager
    async def _one_writer(self, *, patient: bool) -> AsyncIterator[AsyncConnection]:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(None if patient else self.write_wait_s):
                await self._write_lock.acquire()
        except TimeoutError:
            raise TimeoutError("other writes took too long") from None
        try:
            async with self._engine.connect() as connection:
                waited_s = 0 if patient else time.monotonic() - begun
                # Take SQLite's write lock first: a transaction that begins with a
                # read could otherwise fail at its first write.
                await connection.execution_options(
                    sqlite_begin="BEGIN IMMEDIATE",
                    sqlite_wait_ms=_whole_half_seconds(self.write_wait_s - waited_s),
                )
                async with connection.begin():
                    yield connection
        finally:
            self._write_lock.release()

    async def page(
        self, query: Select[Any], *, newest: tuple[Any, ...], limit: int, offset: int
    ) -> tuple[list[Any], int]:
        """Return a page of ``query``, ordered by ``newest`` descending, and the total number."""
        ordered = query.order_by(*(column.desc() for column in newest))
        async with self.read() as connection:
            total = await connection.scalar(select(func.count()).select_from(query.subquery()))
            rows = (await connection.execute(ordered.limit(limit).offset(offset))).mappings().all()
        return list(rows), total or 0


class Trouble:
    """Turns database failures into Unavailable, and logs their causes.

    A plain context manager, safe in async code, for any number of concurrent blocks. A persistent
    fault is logged once per cause every ``_EVERY_S``, with the number of its occurrences.
    """

    _EVERY_S = 10.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}
        self._met: Counter[str] = Counter()

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, IntegrityError):
            return
        if isinstance(error, DBAPIError | PoolTimeout | OSError):
            self._tell(_cause(error))
            raise Unavailable(
                "The database is unavailable", code="STORE_UNAVAILABLE", retry_after_s=2
            ) from error

    def over(self) -> None:
        """Log the recovery after a committed write, unless writes failed within ``_EVERY_S``."""
        if self._told and self._clock() - max(self._told.values()) >= self._EVERY_S:
            self._told.clear()
            self._met.clear()
            log.warning("the database takes writes again")

    def _tell(self, cause: str) -> None:
        self._met[cause] += 1
        moment = self._clock()
        if cause not in self._told or moment - self._told[cause] >= self._EVERY_S:
            self._told[cause] = moment
            log.error(
                "the database is unavailable",
                extra={"cause": cause, "times": self._met.pop(cause)},
            )


def _cause(error: DBAPIError | PoolTimeout | OSError) -> str:
    """Describe an error for the log, without the statement or its values (phone numbers)."""
    if isinstance(error, PoolTimeout):
        return "no connection was free"
    if isinstance(error, DBAPIError):
        driver = error.orig.__cause__ or error.orig if error.orig is not None else error
        # SQLite's messages name tables and columns only; PostgreSQL's may quote values.
        told = str(driver) if isinstance(driver, sqlite3.Error) else ""
    else:
        driver, told = error, error.strerror or ", ".join(map(str, error.args))
    name = type(driver).__name__
    return f"{name}: {told}" if told else name


def _whole_half_seconds(left_s: float) -> int:
    """Return ms, rounded up to half seconds.

    Most writes have not waited; then the value is the same as before and no PRAGMA is needed.
    """
    return max(1, math.ceil(left_s * 2)) * 500


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
                async_creator=partial(
                    core_sqlite.connect, path or ":memory:", timeout_s=WRITE_WAIT_S
                ),
                pool_timeout=5,
            )
            event.listen(engine.sync_engine, "connect", _sqlite_connected)
            event.listen(engine.sync_engine, "begin", _sqlite_begin)
            return engine
        case "postgresql" | "postgres":
            engine = create_async_engine(
                parsed.set(drivername="postgresql+asyncpg"),
                pool_size=10,
                max_overflow=10,
                pool_timeout=5,
                pool_pre_ping=True,
                connect_args={"timeout": 5, "command_timeout": _COMMAND_S},
            )
            event.listen(engine.sync_engine, "connect", _postgres_connected)
            return engine
    raise ValueError("DATABASE_URL must be sqlite:///… or postgresql://…")


def _postgres_connected(connection: Any, _record: object) -> None:
    # A process that is frozen in a transaction keeps its locks, and one of them is every gateway's.
    # It loses the connection, and the transaction fails when it wakes. Not a startup parameter,
    # which PgBouncer refuses.
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_MS}")
    cursor.close()
    connection.commit()


def _sqlite_connected(connection: Any, _record: object) -> None:
    # Transactions begin explicitly, since the driver would begin them late. With WAL readers and
    # the writer do not block each other. A power cut may lose the last commits, never the file.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Any) -> None:
    # Without a BEGIN each reading statement is a transaction of its own.
    options = connection.get_execution_options()
    if (begin := options.get("sqlite_begin")) is None:
        return
    wait_ms = options["sqlite_wait_ms"]
    if connection.info.setdefault("wait_ms", WRITE_WAIT_S * 1000) != wait_ms:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {wait_ms}")
        connection.info["wait_ms"] = wait_ms
    connection.exec_driver_sql(begin)
