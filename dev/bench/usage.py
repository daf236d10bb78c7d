"""What a component and everything that it started take of the machine."""

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
    """CPU seconds until a moment, user and system, by component.

    Beside those asked for: ``PHONE``, this process without its descendants, and ``MACHINE``, all
    that runs on it, whoever started it.
    """

    at: float  # time.monotonic()
    cpu_s: Mapping[str, float]

    @classmethod
    def take(cls, components: Mapping[str, int]) -> Snapshot:
        """``components``: process ids by name, each with all its descendants."""
        own = psutil.Process().cpu_times()
        machine = psutil.cpu_times()
        busy = sum(machine) - machine.idle - machine.iowait
        spent = {name: cpu_s(pid) for name, pid in components.items()}
        return cls(time.monotonic(), {**spent, PHONE: own.user + own.system, MACHINE: busy})

    def cores(self, later: Snapshot) -> dict[str, float]:
        """How many cores each kept busy from here until a later moment."""
        seconds = later.at - self.at
        return {name: (later.cpu_s[name] - spent) / seconds for name, spent in self.cpu_s.items()}


def processes(pid: int) -> int:
    """How many it is: itself and all its descendants."""
    return len(_tree(pid))


def cpu_s(pid: int) -> float:
    """User and system time of those that run, in seconds; one that ends takes its time away."""
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def pss_mib(pid: int) -> float:
    """Memory: what is private, and of what is shared the share (Linux), in MiB."""
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / MIB


def _tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]
