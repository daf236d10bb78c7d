"""One part of the stack: a child process and the condition under which it is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from dev.process import ManagedProcess, Probe, ProcessFailed


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Progress:
    """A component's current state; elapsed_s counts from the start of that phase."""

    component: str
    state: State
    elapsed_s: float = 0.0
    detail: str = ""


Report = Callable[[Progress], None]


@dataclass(slots=True)
class _Run:
    """One run of the process, until the next start."""

    stopped: bool = False  # by stop() or kill()
    replaced: asyncio.Event = field(default_factory=asyncio.Event)


class Component:
    """One part of a running stack, which can be started, stopped, killed and started again."""

    def __init__(
        self,
        process: ManagedProcess,
        probe: Probe,
        *,
        address: str,
        ready_timeout_s: float,
        stop_grace_s: float,
        report: Report,
    ) -> None:
        self.process = process
        self.address = address
        """The URL on which it listens, to be printed."""
        self._probe = probe
        self._ready_timeout_s = ready_timeout_s
        self._stop_grace_s = stop_grace_s
        self._report = report
        self._run = _Run(stopped=True)

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def pid(self) -> int | None:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.running

    async def start(self) -> None:
        """Start it and wait until it is ready. Raises ProcessFailed."""
        started = time.monotonic()
        self._tell(State.STARTING, started)
        try:
            await self.process.start()
            self._run.replaced.set()
            self._run = _Run()
            await self.process.wait_ready(self._probe, timeout_s=self._ready_timeout_s)
        except ProcessFailed:
            self._tell(State.FAILED, started)
            raise
        self._tell(State.READY, started, self.address)

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL to what is left after the grace time."""
        self._run.stopped = True
        if self.running:
            started = time.monotonic()
            self._tell(State.STOPPING, started)
            await self.process.stop(grace_s=self._stop_grace_s)
            self._tell(State.STOPPED, started)

    async def kill(self) -> None:
        """Send SIGKILL to it and all its descendants, as if its machine were lost."""
        self._run.stopped = True
        await self.process.kill()

    async def wait_unexpected_end(self) -> None:
        """Wait until it ends without a call of ``stop`` or ``kill``."""
        while True:
            run = self._run
            if run.stopped:
                await run.replaced.wait()
                continue
            await self.process.wait()
            if not run.stopped:
                return

    def _tell(self, state: State, since: float, detail: str = "") -> None:
        self._report(Progress(self.name, state, time.monotonic() - since, detail))
