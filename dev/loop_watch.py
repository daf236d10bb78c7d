"""Detects blocking calls in the event loops of child processes, and records them.

    env = loop_watch.variables(folder, ROOT)       # for a child and its own children
    ...
    assert loop_watch.found(folder) == []          # the calls that blocked a loop, and where
    assert "gateway" in str(loop_watch.watched(folder))

Python starts it in each process (``sitecustomize``, on PYTHONPATH), so the program under test is
unchanged. blockbuster knows the calls that block: sleep, files, sockets, sqlite3, locks. Audit
hooks of the interpreter add opening a file, resolving a host name and starting a process. The
call is not prevented: it is recorded and continues.

Not detected: blocking inside C extensions, ``with lock:``, and long computations.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from blockbuster.blockbuster import BlockBuster, BlockBusterFunction

Frame = tuple[str, str, int]
"""File, function, line."""

# A lock that another thread releases this soon does not count as blocking.
_LOCK_PATIENCE_S: Final = 0.005
_AUDITED: Final = frozenset(
    {"open", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system"}
)
_MORE: Final = ("os.fsync", "os.fdatasync", "os.makedirs", "socket.create_connection")
_DEPTH: Final = 40


@dataclass(frozen=True, slots=True)
class Allowed:
    """A function that may block a loop, and the reason."""

    file: str
    """The end of the file's path."""
    function: str
    why: str

    def covers(self, stack: Iterable[Frame]) -> bool:
        return any(file.endswith(self.file) and name == self.function for file, name, _ in stack)


@dataclass(frozen=True, slots=True)
class Blocked:
    """One place where a loop was blocked. ``stack`` begins with the innermost frame."""

    process: str
    call: str
    stack: tuple[Frame, ...]

    def __str__(self) -> str:
        lines = [f"  {file}:{line} {name}" for file, name, line in self.stack if _told(file)]
        return "\n".join([f"{self.call} in {self.process}", *lines[:12]])


def variables(folder: Path, *path: Path) -> dict[str, str]:
    """Return the environment variables for a watched child; ``path``: its former PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    code = f"from dev.loop_watch import start\nstart({str(folder)!r})\n"
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join(map(str, (folder, *path)))}


def found(folder: Path, allowed: Sequence[Allowed] = ()) -> list[Blocked]:
    """Return the blocking calls so far, each place once."""
    seen: dict[tuple[Any, ...], Blocked] = {}
    for file in sorted(folder.glob("blocked.*")):
        for line in file.read_text().splitlines():
            told = json.loads(line)
            stack = tuple((str(file), str(name), int(line)) for file, name, line in told["stack"])
            blocked = Blocked(told["process"], told["call"], stack)
            if not any(each.covers(stack) for each in allowed):
                seen.setdefault((blocked.call, _place(stack)), blocked)
    return list(seen.values())


def watched(folder: Path) -> set[str]:
    """Return the command lines of the processes in which a watched loop has run."""
    return {file.read_text() for file in folder.glob("watching.*")}


def start(folder: str) -> None:
    """Start to watch this process; called by ``sitecustomize``."""
    watch = _Watch(folder)
    functions = [
        *BlockBuster().functions.values(),
        *(BlockBusterFunction(None, name) for name in _MORE),
    ]
    for function in functions:
        function.can_block_predicate = watch.predicate(function)
        function.activate()
    sys.addaudithook(watch.audit)


class _Watch:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._busy = threading.local()
        self._told: set[tuple[Any, ...]] = set()
        self._pids: set[int] = set()

    def predicate(self, function: BlockBusterFunction) -> Callable[..., bool]:
        """Return a predicate that lets every call continue, and records those that block."""
        harmless, places = function.can_block_predicate, function.can_block_functions
        lock = function.full_name.startswith("_thread.")

        def allowed(*args: Any, **kwargs: Any) -> bool:
            if getattr(self._busy, "value", False):
                return True  # the call is this module's own
            self._busy.value = True
            try:
                self._note_process()
                if harmless(*args, **kwargs) or (lock and _soon_free(args[0])):
                    return True
                self._note(function.full_name, places)
            finally:
                self._busy.value = False
            return True

        return allowed

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _AUDITED or getattr(self._busy, "value", False) or not _in_loop():
            return
        self._busy.value = True
        try:
            self._note_process()
            self._note(event, ())
        finally:
            self._busy.value = False

    def _note(self, call: str, places: Iterable[tuple[str, Iterable[str]]]) -> None:
        stack = _stack()
        for file, functions in places:
            if not file.startswith("<frozen importlib") and any(
                name.endswith(file) and function in functions for name, function, _ in stack
            ):
                return
        key = (os.getpid(), call, _place(stack))
        if key not in self._told:
            self._told.add(key)
            told = asdict(Blocked(_process(), call, stack))
            self._write("blocked", json.dumps(told) + "\n")

    def _note_process(self) -> None:
        pid = os.getpid()
        if pid not in self._pids:
            self._pids.add(pid)
            self._write("watching", _process())

    def _write(self, kind: str, text: str) -> None:
        with open(f"{self._folder}/{kind}.{os.getpid()}", "a") as file:
            file.write(text)


def _told(file: str) -> bool:
    """Return False for frames of the import machinery, which tell no places apart."""
    return not file.startswith("<frozen importlib")


def _place(stack: Iterable[Frame]) -> tuple[Frame, ...]:
    """Return the frames that identify a place."""
    return tuple(frame for frame in stack if _told(frame[0]))[:8]


def _soon_free(lock: Any) -> bool:
    if lock.acquire(timeout=_LOCK_PATIENCE_S):
        lock.release()
        return True
    return False


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _stack() -> tuple[Frame, ...]:
    frames: list[Frame] = []
    frame = sys._getframe(1)
    while frame is not None and len(frames) < _DEPTH:
        code = frame.f_code
        if code.co_filename != __file__ and "blockbuster" not in code.co_filename:
            frames.append((code.co_filename, code.co_name, frame.f_lineno))
        if frame.f_back is None:
            break
        frame = frame.f_back
    return tuple(frames)


def _process() -> str:
    return f"{' '.join(sys.orig_argv[1:])[:70]} ({multiprocessing.current_process().name})"
