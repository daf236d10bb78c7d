"""A statement takes one round trip to SQLite's thread; no transaction is left open."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.store import sqlite

pytestmark = pytest.mark.store


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[sqlite.Connection]:
    opened = await sqlite.connect(str(tmp_path / "a.db"), timeout_s=1)
    yield opened
    await opened.close()


async def test_rows_come_with_their_statement(connection: sqlite.Connection) -> None:
    cursor = connection.cursor()
    await cursor.execute("CREATE TABLE numbers (number INTEGER)")
    await cursor.executemany("INSERT INTO numbers VALUES (?)", [(1,), (2,)])
    assert (cursor.rowcount, cursor.description) == (2, None)
    await cursor.execute("SELECT number FROM numbers WHERE number > ?", (0,))
    assert cursor.description[0][0] == "number"
    assert await cursor.fetchall() == [(1,), (2,)]
    assert await cursor.fetchall() == []


async def test_a_broken_statement_says_so(connection: sqlite.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError):
        await connection.cursor().execute("SELECT FROM")


async def test_what_a_cancelled_caller_began_is_rolled_back(connection: sqlite.Connection) -> None:
    go_on = threading.Event()
    busy = asyncio.create_task(connection.at_once(lambda _: go_on.wait(10)))
    begin = asyncio.create_task(connection.cursor().execute("BEGIN IMMEDIATE"))
    await asyncio.sleep(0)
    begin.cancel()
    rollback = asyncio.create_task(connection.rollback())
    await asyncio.sleep(0)
    assert not rollback.done()
    go_on.set()
    await asyncio.gather(busy, rollback)
    assert not connection.in_transaction
