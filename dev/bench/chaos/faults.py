"""What happens to the processes of a stack: a seeded sequence of stops, kills and freezes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import psutil

from dev.bench.recovery.faults import tree
from dev.stack import Stack
from dev.stack.component import Component

Part = Literal["worker", "streams", "gateway"]
Way = Literal["stopped", "killed", "frozen", "job killed", "job frozen"]

DOWN_S: Final = (0.5, 4.0)
"""How long a killed process stays away."""
FROZEN_S: Final = (2.0, 9.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """``parts`` suffer it at the same time, one process of each."""

    parts: tuple[Part, ...]
    way: Way

    def __str__(self) -> str:
        return f"{' and '.join(self.parts)} {self.way}"

    @property
    def planned(self) -> bool:
        return self.way == "stopped"


FAULTS: Final = (
    Fault(("worker",), "stopped"),
    Fault(("worker",), "killed"),
    Fault(("worker",), "frozen"),
    Fault(("worker",), "job killed"),
    Fault(("worker",), "job frozen"),
    Fault(("streams",), "stopped"),
    Fault(("streams",), "killed"),
    Fault(("streams",), "frozen"),
    Fault(("gateway",), "stopped"),
    Fault(("gateway",), "killed"),
    Fault(("gateway",), "frozen"),
    Fault(("gateway", "worker", "streams"), "killed"),
)


def sequence(chance: random.Random) -> Iterator[Fault]:
    """Yield faults for ever: all of them, in a random order, before any comes again."""
    while True:
        yield from chance.sample(FAULTS, len(FAULTS))


class Victims:
    """The processes of each part; one of each suffers at a time, so that others are well."""

    def __init__(self, stack: Stack, chance: random.Random) -> None:
        self._stack = stack
        self._chance = chance

    async def suffer(self, fault: Fault) -> None:
        """Do it; return once all processes are well again."""
        victims = [self._chance.choice(self._of(part)) for part in fault.parts]
        down_s, frozen_s = self._chance.uniform(*DOWN_S), self._chance.uniform(*FROZEN_S)
        await asyncio.gather(*(self._suffer(one, fault.way, down_s, frozen_s) for one in victims))

    def _of(self, part: Part) -> list[Component]:
        names = (name for name in self._stack.components if name.partition("-")[0] == part)
        return [self._stack.components[name] for name in names]

    async def _suffer(self, victim: Component, way: Way, down_s: float, frozen_s: float) -> None:
        match way:
            case "stopped":
                await victim.stop()
                await victim.start()
            case "killed":
                await victim.kill()
                await asyncio.sleep(down_s)
                await victim.start()
            case "frozen":
                assert victim.pid is not None, victim.name
                await _freeze(tree(victim.pid), frozen_s)
            case "job killed" | "job frozen":
                if (job := self._job(victim)) is None:
                    return
                if way == "job frozen":
                    await _freeze([job], frozen_s)
                else:
                    job.send_signal(signal.SIGKILL)

    def _job(self, worker: Component) -> psutil.Process | None:
        """Return a process of the worker that holds a call; None: it holds none."""
        spool = str(self._stack.settings.data_dir / "spool" / "worker")
        assert worker.pid is not None, worker.name
        for process in tree(worker.pid)[1:]:
            with contextlib.suppress(psutil.Error):
                if any(file.path.startswith(spool) for file in process.open_files()):
                    return process
        return None


async def _freeze(processes: Sequence[psutil.Process], seconds: float) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.suspend()
    try:
        await asyncio.sleep(seconds)
    finally:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.resume()
