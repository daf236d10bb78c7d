"""The databases that a store's contract runs on: SQLite in a file, PostgreSQL from a wheel.

    class TestSqlite(OnSqlite, Contract): ...
    class TestPostgres(OnPostgres, Contract): ...

Each test of the contract gets the ``url`` of a fresh database with the newest schema, or the
``empty_url`` of one without any.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from core.models import new_id
from dev.standins.databases import postgres_server
from gateway.store import migrations
from gateway.store.database import Database


@functools.cache
def migrated() -> bytes:
    """Return a database file of the newest schema: making one takes 50 ms, as most tests do."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "new.db"
        engine = create_engine(f"sqlite:///{file}")
        with engine.begin() as connection:
            migrations.upgrade(connection)
        engine.dispose()
        return file.read_bytes()


class OnSqlite:
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        (tmp_path / "test.db").write_bytes(migrated())
        return f"sqlite:///{tmp_path}/test.db"

    @pytest.fixture
    def empty_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/deep/er/empty.db"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server that all tests of the process share."""
    with postgres_server() as server:
        yield server.url


_templates: dict[str, str] = {}


async def fresh_database(postgres: str, *, empty: bool = False) -> str:
    """Return the URL of a new database on that server, with the newest schema or ``empty``.

    The first one is migrated, which takes ten times as long as to copy it.
    """
    admin = make_url(postgres).set(drivername="postgresql+asyncpg")

    def url(name: str) -> str:
        chosen = admin.set(drivername="postgresql", database=name)
        return chosen.render_as_string(hide_password=False)

    engine = create_async_engine(admin, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    async def create(source: str) -> str:
        name = new_id("db")
        async with engine.connect() as connection:
            await connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {source}"))
        return name

    if empty:
        return url(await create("template1"))
    if postgres not in _templates:
        made = await create("template1")
        await (await Database.open(url(made))).close()
        _templates[postgres] = made
    return url(await create(_templates[postgres]))


class OnPostgres:
    @pytest.fixture
    async def url(self, postgres: str) -> str:
        return await fresh_database(postgres)

    @pytest.fixture
    async def empty_url(self, postgres: str) -> str:
        return await fresh_database(postgres, empty=True)
