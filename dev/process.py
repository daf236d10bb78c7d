"""Child processes that are waited for, stopped in order and never orphaned.

Each runs under ``dev/guard.py``, which kills the child and its descendants when this
process ends, even by SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
PROBE_INTERVAL_S = 0.05
KILL_TIMEOUT_S = 10.0
PROGRESS_INTERVAL_S = 0.5

Probe = Callable[[], Awaitable[bool]]


class ProcessFailed(RuntimeError):
    """A child exited or did not become ready. The message ends with the tail of its log."""


class ManagedProcess:
    """One child and its log file. It can be started again after it has ended."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log_path = log_path
        self.env = None if env is None else dict(env)
        self.cwd = cwd
        self.pid: int | None = None
        """The command's own process id (not its guard's) while it runs."""
        self.returncode: int | None = None
        """The exit code, or 128 + N after signal N; None until the child has ended."""
        self._log_start = 0  # where the log of this run begins, in bytes
        self._link: socket.socket | None = None
        self._exit: asyncio.Task[int] | None = None

    @property
    def running(self) -> bool:
        return self._exit is not None and not self._exit.done()

    async def start(self) -> None:
        """Start the command; return as soon as it has a process id."""
        if self.running:
            raise RuntimeError(f"{self.name} is running already")
        self.returncode = None
        ours, theirs = socket.socketpair()
        try:
            with theirs, self.log_path.open("ab") as log:
                self._log_start = log.tell()
                guard = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", str(GUARD), str(theirs.fileno())),
                    *self.command,
                    env=self.env,
                    cwd=self.cwd,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        self._link = ours
        self._exit = asyncio.create_task(self._wait_for_exit(guard), name=f"exit of {self.name}")
        ours.setblocking(False)
        line = await asyncio.get_running_loop().sock_recv(ours, 32)
        self.pid = int(line) if line else None

    async def _wait_for_exit(self, guard: asyncio.subprocess.Process) -> int:
        self.returncode = await guard.wait()
        self.pid = None
        if self._link is not None:
            self._link.close()
            self._link = None
        return self.returncode

    async def wait(self) -> int:
        """Wait until the child and all its descendants have ended; return its exit code."""
        if self._exit is None:
            raise RuntimeError(f"{self.name} was not started")
        return await asyncio.shield(self._exit)

    async def wait_ready(self, probe: Probe, *, timeout_s: float) -> None:
        """Wait until the probe returns True.

        Raise ProcessFailed as soon as the process ends, or after timeout_s.
        """
        if self._exit is None:
            raise RuntimeError(f"{self.name} was not started")
        try:
            async with asyncio.timeout(timeout_s):
                while not self._exit.done():
                    if await probe():
                        return
                    await asyncio.wait({self._exit}, timeout=PROBE_INTERVAL_S)
        except TimeoutError:
            raise ProcessFailed(
                self._explain(f"{self.name} did not get ready within {timeout_s:g} s")
            ) from None
        raise ProcessFailed(
            self._explain(f"{self.name} ended with exit code {self.returncode} while starting")
        )

    async def stop(self, *, grace_s: float = 10.0) -> int | None:
        """Send SIGTERM to the command, and SIGKILL to the whole tree after grace_s.

        If cancelled meanwhile, kill at once. Return the exit code; None if it was never started.
        """
        self.signal(signal.SIGTERM)
        return await self._ended_within(grace_s)

    async def kill(self) -> int | None:
        """Send SIGKILL to the command and all its descendants."""
        return await self._ended_within(0)

    async def _ended_within(self, grace_s: float) -> int | None:
        if self._exit is None:
            return None
        try:
            if grace_s > 0:
                await asyncio.wait({self._exit}, timeout=grace_s)
        finally:
            if not self._exit.done():
                self.signal(signal.SIGKILL)
        await asyncio.wait({self._exit}, timeout=KILL_TIMEOUT_S)
        if not self._exit.done():
            raise ProcessFailed(f"{self.name} cannot be killed")
        return self._exit.result()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal: SIGKILL to the whole tree, any other to the command alone."""
        if self._link is not None:
            with contextlib.suppress(OSError):  # it has just ended
                self._link.send(bytes([number]))

    def log_text(self, *, this_run: bool = False) -> str:
        """Return the output so far, of all runs or since the last start."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start if this_run else 0)
            return log.read().decode(errors="replace")

    def _explain(self, what: str) -> str:
        tail = self.log_text(this_run=True).splitlines()[-20:]
        if not tail:
            return f"{what}; it logged nothing"
        return "\n  ".join([f"{what}; its log ends:", *tail])


async def run_to_end(
    process: ManagedProcess, *, timeout_s: float, meanwhile: Callable[[float], None]
) -> int:
    """Run a command until it ends by itself; return its exit code.

    ``meanwhile`` is called twice a second with the elapsed seconds. Raise TimeoutError after
    timeout_s. In every case the command and its descendants have ended on return.
    """
    started = time.monotonic()
    await process.start()
    try:
        async with asyncio.timeout(timeout_s):
            while process.running:
                meanwhile(time.monotonic() - started)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), PROGRESS_INTERVAL_S)
    finally:
        await process.kill()
    return await process.wait()


def inherited_environment(without: Sequence[str] = ()) -> dict[str, str]:
    """Return our environment (PATH, HOME, locale, …) for a child, without the named settings."""
    dropped = {name.upper() for name in without}
    return {name: value for name, value in os.environ.items() if name.upper() not in dropped}


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of this process's environment for the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
