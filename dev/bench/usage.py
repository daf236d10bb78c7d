"""The CPU and memory of a component and all its descendants."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

MIB = 2**20


PHONE, MACHINE = "phone", "machine"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """CPU seconds (user and system) up to one moment, by component.

    It also has ``PHONE``, this process without its descendants, and ``MACHINE``, all processes of
    the machine.
    """

    at: float  # time.monotonic()
    cpu_s: Mapping[str, float]

    @classmethod
    def take(cls, components: Mapping[str, int]) -> Snapshot:
        """Take a snapshot. ``components``: process ids by name; their descendants count too."""
        own = psutil.Process().cpu_times()
        machine = psutil.cpu_times()
        busy = sum(machine) - machine.idle - machine.iowait
        spent = {name: cpu_s(pid) for name, pid in components.items()}
        return cls(time.monotonic(), {**spent, PHONE: own.user + own.system, MACHINE: busy})

    def cores(self, later: Snapshot) -> dict[str, float]:
        """Return how many cores each component kept busy until a later snapshot."""
        seconds = later.at - self.at
        return {name: (later.cpu_s[name] - spent) / seconds for name, spent in self.cpu_s.items()}


def processes(pid: int) -> int:
    """Return the number of processes: the process and all its descendants."""
    return len(_tree(pid))


def cpu_s(pid: int) -> float:
    """Return user and system time of the running processes, in seconds; ended ones do not count."""
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def pss_mib(pid: int) -> float:
    """Return the PSS (private memory, and the share of shared memory; Linux), in MiB."""
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / MIB


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]
