"""A database that takes no writes: it is noticed, waits are bounded, and errors are logged."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from core.errors import Unavailable
from gateway.store.database import Database, Trouble, one_at_a_time
from gateway.store.write_probe import WriteProbe
from tests.support.calls import request
from tests.support.databases import OnPostgres, OnSqlite
from tests.support.small_disk import SmallDisk
from tests.support.small_disk import disk as disk

pytestmark = [pytest.mark.store, pytest.mark.attack]

LOCKER = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""
TAKES_NO_WRITES = "the database takes no writes"
DIAL = request("127.0.0.1:9", agent=None)


@asynccontextmanager
async def locked(path: str) -> AsyncIterator[None]:
    """Have another process hold SQLite's write lock."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LOCKER, path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"locked\n"
        yield
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def on_postgres(url: str, *faults: str, undo: tuple[str, ...] = ()) -> AsyncIterator[None]:
    """Run ``faults`` against our database from another one, and ``undo`` at the end."""
    address = make_url(url)
    engine = create_async_engine(
        address.set(drivername="postgresql+asyncpg", database="postgres"),
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
    )

    async def run(statements: tuple[str, ...]) -> None:
        async with engine.connect() as connection:
            for statement in statements:
                await connection.execute(text(statement.format(name=address.database)))

    await run(faults)
    try:
        yield
    finally:
        await run(undo)
        await engine.dispose()


@asynccontextmanager
async def held_lock(url: str) -> AsyncIterator[None]:
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    async with engine.begin() as connection:
        await connection.execute(text("LOCK TABLE probes IN ACCESS EXCLUSIVE MODE"))
        yield
    await engine.dispose()


END_BACKENDS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"


def causes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.__dict__["cause"]
        for record in caplog.records
        if record.getMessage() == "the database is unavailable"
    ]


async def ready_again(database: Database) -> None:
    """Check that the same object takes writes again, without a restart."""
    await database.touch()
    assert await WriteProbe(database).ok()


class TestSqlite(OnSqlite):
    @pytest.fixture
    async def database(self, url: str) -> AsyncIterator[Database]:
        database = await Database.open(url, write_wait_s=0.5)
        yield database
        await database.close()

    @pytest.fixture
    def path(self, url: str) -> str:
        return url.removeprefix("sqlite:///")

    async def test_locked(
        self, database: Database, path: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with locked(path):
            await database.ping()
            with pytest.raises(Unavailable) as refusal:
                await database.touch()
            assert (refusal.value.code, refusal.value.status) == ("STORE_UNAVAILABLE", 503)
            assert not await WriteProbe(database).ok()
            assert causes(caplog) == ["OperationalError: database is locked"]
        await ready_again(database)

    async def test_those_who_queue_give_up_together(
        self, database: Database, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only the first writer waits for the other process; the waits do not add up."""
        told: list[str] = []
        monkeypatch.setattr(Trouble, "_tell", lambda _, cause: told.append(cause))
        async with locked(path):
            results = await asyncio.gather(
                *(database.touch() for _ in range(8)), return_exceptions=True
            )
        assert all(isinstance(result, Unavailable) for result in results)
        assert len(told) == 8
        # A second writer may get to SQLite just as its time is up.
        assert 1 <= told.count("OperationalError: database is locked") <= 2
        assert set(told[2:]) <= {
            "TimeoutError: other writes took too long",
            "OperationalError: database is locked",
        }
        await ready_again(database)

    async def test_who_waited_does_not_wait_as_long_again(self, url: str) -> None:
        """SQLite is given only the rest of the writer's time; the next writer has its full time."""
        database = await Database.open(url, write_wait_s=5)
        async with database.write():
            second = asyncio.create_task(self._busy_timeout(database))
            await asyncio.sleep(0.6)
        assert await second < 5000
        assert await self._busy_timeout(database) == 5000
        await database.close()

    async def _busy_timeout(self, database: Database) -> int:
        async with database.write() as connection:
            return int(await connection.scalar(text("PRAGMA busy_timeout")) or 0)

    async def test_a_write_that_gave_up_leaves_the_queue_in_order(self, database: Database) -> None:
        async with database.write():
            waiting = [asyncio.create_task(database.touch()) for _ in range(4)]
            done, _ = await asyncio.wait(waiting, timeout=20)
        assert len(done) == len(waiting)
        assert all(isinstance(task.exception(), Unavailable) for task in done)
        await ready_again(database)


# Prints, for each number of writes asked for, whether they and then a probe succeeded.
_WRITES = """
import asyncio, logging, sys
from core.errors import Unavailable
from gateway.store.database import Database
from gateway.store.write_probe import WriteProbe

logging.basicConfig(level=logging.ERROR, format="%(message)s: %(cause)s")

async def main(path):
    database = await Database.open(f"sqlite:///{path}")
    for count in sys.stdin:
        try:
            for _ in range(int(count)):
                await database.touch()
            print("written", end=" ")
        except Unavailable:
            print("refused", end=" ")
        print(await WriteProbe(database).ok(), flush=True)
    await database.close()

asyncio.run(main(sys.argv[1]))
"""


def test_a_full_disk(disk: SmallDisk) -> None:
    command = [*disk.inside, sys.executable, "-c", _WRITES, str(disk.mounted / "test.db")]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1
    ) as process:
        assert process.stdin and process.stdout and process.stderr

        def writes(count: int) -> list[str]:
            print(count, file=process.stdin)
            return process.stdout.readline().split()  # type: ignore[union-attr]

        assert writes(1) == ["written", "True"]
        disk.fill()
        # For a while SQLite can overwrite what it wrote before.
        assert writes(2000) == ["refused", "False"]
        disk.relieve()
        assert writes(1) == ["written", "True"]
        process.stdin.close()
        assert process.stderr.read() == (
            "the database is unavailable: OperationalError: database or disk is full\n"
        )
    assert process.returncode == 0


class TestPostgres(OnPostgres):
    @pytest.fixture
    async def database(self, url: str) -> AsyncIterator[Database]:
        database = await Database.open(url, write_wait_s=0.5)
        yield database
        await database.close()

    async def test_a_gateway_that_is_frozen_in_a_transaction_gives_way(self, url: str) -> None:
        """The others need its lock, and its own transaction fails when it wakes."""
        has_it, woken = asyncio.Event(), asyncio.Event()
        frozen, other = await Database.open(url), await Database.open(url)

        async def stand_still() -> None:
            async with frozen.write() as connection:
                await one_at_a_time(connection, "places")
                has_it.set()
                await woken.wait()
                await connection.execute(text("SELECT 1"))

        try:
            standing = asyncio.create_task(stand_still())
            async with asyncio.timeout(20):
                await has_it.wait()
                async with other.write() as connection:
                    await one_at_a_time(connection, "places")
                woken.set()
                with pytest.raises(Unavailable):
                    await standing
                async with frozen.write() as connection:
                    await one_at_a_time(connection, "places")
        finally:
            await frozen.close()
            await other.close()

    async def test_a_lock_is_held(
        self, database: Database, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with held_lock(url):
            await database.ping()
            touching = asyncio.gather(*(database.touch() for _ in range(8)), return_exceptions=True)
            # The writes fail long before the driver would give up on a statement.
            results = await asyncio.wait_for(touching, 8)
            assert all(isinstance(result, Unavailable) for result in results)
            assert not await WriteProbe(database).ok()
            assert causes(caplog) == ["TimeoutError"]
        await ready_again(database)

    async def test_its_connections_are_ended(self, database: Database, url: str) -> None:
        await asyncio.gather(*(database.touch() for _ in range(4)))
        async with on_postgres(url, END_BACKENDS):
            await ready_again(database)

    async def test_ended_in_the_middle_of_a_write(
        self, database: Database, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(Unavailable):
            async with database.write() as connection:
                await connection.execute(text("SELECT 1"))
                async with on_postgres(url, END_BACKENDS):
                    await connection.execute(text("SELECT 'a secret'"))
        [cause] = causes(caplog)
        assert "secret" not in cause
        await ready_again(database)

    async def test_stopped(
        self, database: Database, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        stop = ("ALTER DATABASE {name} ALLOW_CONNECTIONS false", END_BACKENDS)
        start = ("ALTER DATABASE {name} ALLOW_CONNECTIONS true",)
        async with on_postgres(url, *stop, undo=start):
            for ask in (database.ping, database.touch):
                with pytest.raises(Unavailable):
                    await ask()
            assert not await WriteProbe(database).ok()
            assert causes(caplog)
        await ready_again(database)

    async def test_read_only(
        self, database: Database, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As after a failover to a read-only replica, reads are served."""
        fault = ("ALTER DATABASE {name} SET default_transaction_read_only = on", END_BACKENDS)
        undo = ("ALTER DATABASE {name} RESET default_transaction_read_only", END_BACKENDS)
        async with on_postgres(url, *fault, undo=undo):
            await database.ping()
            assert not await WriteProbe(database).ok()
            assert causes(caplog) == ["ReadOnlySQLTransactionError"]
        await ready_again(database)


# --- what is logged


class TestTrouble:
    @pytest.fixture
    def fail(self) -> Callable[[str], None]:
        self.time = 100.0
        self.trouble = trouble = Trouble(lambda: self.time)

        def fail(cause: str) -> None:
            with pytest.raises(Unavailable), trouble:
                raise OSError(5, cause)

        return fail

    def told(self, caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
        return [
            (str(record.__dict__["cause"]), int(record.__dict__["times"]))
            for record in caplog.records
            if record.levelno == logging.ERROR
        ]

    def test_a_flood_is_told_once(
        self, fail: Callable[[str], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(1000):
            fail("disk")
        fail("other")
        self.time += 10
        fail("disk")
        assert self.told(caplog) == [("OSError: disk", 1), ("OSError: other", 1)] + [
            ("OSError: disk", 1000)
        ]

    def test_an_end_is_told_once(
        self, fail: Callable[[str], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        fail("disk")
        self.trouble.over()
        fail("disk")
        assert len(caplog.records) == 1, "a write in between is no end, and opens no flood"
        self.time += 10
        for _ in range(3):
            self.trouble.over()
        assert [record.getMessage() for record in caplog.records[1:]] == [
            "the database takes writes again"
        ]
