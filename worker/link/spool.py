"""Files that keep a call's events until the gateway has them.

There is one file of JSON lines per call and worker process, under ``data_dir/spool/worker``.
The first line names the call, every other line is one event. The first line also has the
call-scoped token, which is needed to send the events after the process is gone. So the
directory is 0700 and the files are 0600, and a file is removed as soon as everything in it
is delivered.

The owner holds an exclusive ``flock`` on its file, which the kernel releases when the
process ends in any way: a file that can be locked has no owner.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from core.models import CallEvent, new_id
from core.tools.memory import MEMORY

log = logging.getLogger(__name__)

_SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class Owner:
    """The call that events belong to, and the token for posting them."""

    call_id: str
    token: str


class Spool:
    """One call's file. Methods raise OSError (disk full, not writable, …)."""

    def __init__(self, path: Path, file: BinaryIO, owner: Owner, events_at: int) -> None:
        self.path = path
        self.owner = owner
        self._file = file
        self._events_at = events_at

    @classmethod
    def create(cls, directory: Path, owner: Owner) -> Spool:
        """Create a locked file."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Lock it under a name that the sweeper ignores, then rename it.
        hidden = directory / (new_id("call") + ".new")
        file = _open(hidden, os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            header = (json.dumps(asdict(owner)) + "\n").encode()
            file.write(header)
            file.flush()
            path = hidden.with_suffix(_SUFFIX)
            hidden.rename(path)
        except OSError:
            hidden.unlink(missing_ok=True)
            file.close()  # raises again on a full disk: the header is still in its buffer
            raise
        return cls(path, file, owner, len(header))

    @classmethod
    def adopt(cls, path: Path) -> Spool | None:
        """Lock an orphaned file; return None if it has an owner or no readable header."""
        try:
            file = _open(path, 0)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have been delivered and removed between the listing and the lock.
            if os.fstat(file.fileno()).st_nlink == 0:
                raise BlockingIOError
            file.seek(0)
            header = file.readline()
            owner = Owner(**json.loads(header))
        except BlockingIOError:
            file.close()
            return None
        except (ValueError, TypeError):
            log.error("spool file without a readable header", extra={"path": str(path)})
            path.rename(path.with_suffix(".rejected"))
            file.close()
            return None
        return cls(path, file, owner, len(header))

    def append(self, event: CallEvent) -> None:
        self._file.write(event.model_dump_json(by_alias=True).encode() + b"\n")
        self._file.flush()

    def read(self) -> list[CallEvent]:
        """Return every event in the file, without a line that a crash cut off."""
        self._file.seek(self._events_at)
        events = []
        for line in self._file.read().splitlines():
            try:
                events.append(CallEvent.model_validate_json(line))
            except ValidationError:
                log.warning("skipped a broken line", extra={"path": str(self.path)})
        return events

    def clear(self) -> None:
        """Remove the events, which are all delivered."""
        self._file.truncate(self._events_at)

    def reject(self, events: list[CallEvent], reason: str) -> None:
        """Set aside, without the token, events that the gateway refused for good.

        What the next agent must know (core.tools.memory) is not: it is not for anybody else.
        """
        events = [event for event in events if not event.type.startswith(MEMORY)]
        if not events:
            return
        with _open(self.path.with_suffix(".rejected"), os.O_CREAT) as file:
            for event in events:
                note = {"callId": self.owner.call_id, "reason": reason, "event": event.wire()}
                file.write(json.dumps(note).encode() + b"\n")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()

    def release(self) -> None:
        """Leave the file to the sweeper."""
        self._file.close()


def files_of(directory: Path, call_id: str) -> list[Path]:
    """Return the call's files there, including those in use."""
    return [path for path in leftovers(directory) if _call_of(path) == call_id]


def _call_of(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    return header.get("call_id") if isinstance(header, dict) else None


def leftovers(directory: Path) -> list[Path]:
    """Return the files there, oldest first, including those in use."""
    try:
        found = [entry for entry in directory.iterdir() if entry.suffix == _SUFFIX]
        return sorted(found, key=lambda path: path.stat().st_mtime)
    except FileNotFoundError:
        return []


def _open(path: Path, flags: int) -> BinaryIO:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
    return os.fdopen(descriptor, "r+b")
