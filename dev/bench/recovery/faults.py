"""What is done to the agent of a call: its process or its whole worker is killed or frozen."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Final, Literal

import psutil

from dev.stack import Stack
from dev.stack.component import Component

Fault = Literal["job killed", "job frozen", "worker killed", "worker frozen"]
FAULTS: Final[tuple[Fault, ...]] = ("job killed", "job frozen", "worker killed", "worker frozen")


class Agent:
    """The process that serves a call, and its worker."""

    def __init__(self, process: psutil.Process, worker: Component) -> None:
        self._process = process
        self._worker = worker
        self._frozen: list[psutil.Process] = []

    @classmethod
    def find(cls, stack: Stack, call_id: str) -> Agent | None:
        """Return the call's agent; None: no process has the call's spool open."""
        spool = _spool(stack.settings.data_dir / "spool" / "worker", call_id)
        if spool is None:
            return None
        for name, component in stack.components.items():
            if not name.startswith("worker") or component.pid is None:
                continue
            for process in tree(component.pid):
                with contextlib.suppress(psutil.Error):
                    if any(Path(file.path) == spool for file in process.open_files()):
                        return cls(process, component)
        return None

    async def suffer(self, fault: Fault) -> None:
        match fault:
            case "job killed":
                self._process.kill()
            case "job frozen":
                self._freeze(self._process)
            case "worker killed":
                await self._worker.kill()
            case "worker frozen":
                assert self._worker.pid is not None
                self._freeze(*tree(self._worker.pid))

    def wake(self) -> None:
        """Let go on what was frozen, as far as it still exists."""
        for process in self._frozen:
            with contextlib.suppress(psutil.Error):
                process.resume()

    async def repair(self) -> None:
        """Bring the worker back, in a process that has suffered nothing."""
        self.wake()
        if self._frozen and self._worker.running and self._process not in self._frozen[:1]:
            await self._worker.kill()
        if not self._worker.running:
            await self._worker.start()

    def _freeze(self, *processes: psutil.Process) -> None:
        self._frozen = list(processes)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.suspend()


def _spool(folder: Path, call_id: str) -> Path | None:
    newest = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest:
        with contextlib.suppress(OSError, ValueError):
            with path.open() as file:
                if json.loads(file.readline()).get("call_id") == call_id:
                    return path
    return None


def tree(pid: int) -> list[psutil.Process]:
    """Return the process and its descendants, itself first."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []
