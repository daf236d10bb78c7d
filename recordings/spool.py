"""Recordings on the disk of the process that records, until they are stored.

In ``data_dir/spool/recordings`` (0700) each recording has, named by its call and its part,

    .json       its call and plan; the process that records or uploads holds an exclusive ``flock``
                on it, which the kernel releases when the process ends in any way
    .wav        the audio
    .ogg        the audio encoded, if the plan asks for it
    .done       the .json of a recording that is stored and reported; the rest is being removed
    .rejected   the .json of a recording that cannot be stored; to try again, rename it to .json

and, for the moment in which it is created, a ``.new`` under a random name: the .json before it is
locked. A process that is killed at that moment leaves it behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Self

from core.models import new_id
from core.recordings.plan import RecordingPlan
from core.shapes import Model
from recordings.wav import Frames, WavWriter

log = logging.getLogger(__name__)

_SUFFIX = ".json"
_NEW = ".new"
_NEW_FOR_S = 3600
"""Creating a recording takes milliseconds: what is older has no process any more."""
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,100}")


class _Header(Model):
    call_id: str
    plan: RecordingPlan


class Spooled:
    """A recording whose lock this process holds. Methods raise OSError."""

    def __init__(self, path: Path, lock: BinaryIO, header: _Header) -> None:
        self.call_id = header.call_id
        self.plan = header.plan
        self.wav = path.with_suffix(".wav")
        self.ogg = path.with_suffix(".ogg")
        self.lock = lock
        self._path = path

    @classmethod
    def create(cls, directory: Path, call_id: str, plan: RecordingPlan) -> Spooled:
        """Create a locked file. Raises FileExistsError if there is this part of the call."""
        if not _SAFE.fullmatch(call_id):
            raise OSError(errno.EINVAL, "not a call's id", call_id)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        header = _Header(call_id=call_id, plan=plan)
        path = directory / (_name(call_id, plan) + _SUFFIX)
        # Lock it under a name that the sweeper ignores, then give it its name, if that is free.
        hidden = directory / (new_id(call_id) + _NEW)
        lock = _open(hidden, os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.write(header.model_dump_json(by_alias=True).encode())
            lock.flush()
            path.hardlink_to(hidden)
        except OSError:
            lock.close()
            raise
        finally:
            hidden.unlink(missing_ok=True)
        return cls(path, lock, header)

    @classmethod
    def adopt(cls, path: Path) -> Spooled | None:
        """Lock an orphaned file; return None if it has an owner or is not readable."""
        try:
            lock = _open(path, 0)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have been uploaded and renamed between the listing and the lock.
            if not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                raise FileNotFoundError
            header = _Header.model_validate_json(lock.read())
            if _name(header.call_id, header.plan) != path.stem:
                raise ValueError("another call's")
        except (BlockingIOError, FileNotFoundError):
            lock.close()
            return None
        except ValueError:  # pydantic's included
            with lock:
                log.error("recording without a readable plan", extra={"path": str(path)})
                path.rename(path.with_suffix(".rejected"))
            return None
        except OSError:
            lock.close()
            raise
        return cls(path, lock, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the recording to the sweeper, if it is still there."""
        self.lock.close()

    def remove(self) -> None:
        """Remove the recording, which is stored and reported."""
        done = self._path.with_suffix(".done")
        self._path.rename(done)
        _remove(done)

    def abandon(self) -> None:
        """Remove the .json only: there is no audio, or it is another recording's."""
        self._path.unlink()

    def reject(self) -> None:
        """Set the recording aside for the operator."""
        self._path.rename(self._path.with_suffix(".rejected"))


def _name(call_id: str, plan: RecordingPlan) -> str:
    return f"{call_id}-part{plan.part}" if plan.part else call_id


class RecordingFile:
    """The recording of a call in progress. Methods block, and raise OSError.

    After ``close``, or the end of the process, ``recordings.upload`` takes it over.
    """

    def __init__(self, spooled: Spooled, writer: WavWriter) -> None:
        self._spooled = spooled
        self._writer = writer

    @classmethod
    def create(cls, directory: Path, call_id: str, plan: RecordingPlan) -> RecordingFile:
        """Create the files. Raises FileExistsError if there is this part of the call."""
        spooled = Spooled.create(directory, call_id, plan)
        try:
            return cls(spooled, WavWriter(spooled.wav))
        except OSError:
            with spooled:
                spooled.abandon()
            raise

    @property
    def frames(self) -> int:
        """The number of frames in the file."""
        return self._writer.frames

    def append(self, frames: Frames) -> None:
        """Append frames of shape (n, 2), or raise OSError and leave the file as it was."""
        self._writer.append(frames)

    def close(self) -> None:
        with self._spooled:
            self._writer.close()


def leftovers(directory: Path) -> Sequence[Path]:
    """Return the recordings there, oldest first, those in use included."""
    return with_suffix(directory, _SUFFIX)


def with_suffix(directory: Path, suffix: str) -> Sequence[Path]:
    """Return the files there, oldest first."""
    found = []
    for path in directory.glob("*" + suffix):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found)]


def size(directory: Path) -> int:
    """Return the bytes of all audio there."""
    total = 0
    for pattern in ("*.wav", "*.ogg", "*.tmp"):
        for path in directory.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
    return total


def clean(directory: Path) -> None:
    """Remove what is left of recordings that are stored and reported, or that never began."""
    for path in with_suffix(directory, ".done"):
        _remove(path)
    for path in with_suffix(directory, _NEW):
        with contextlib.suppress(FileNotFoundError):  # it has its name now
            if time.time() - path.stat().st_mtime > _NEW_FOR_S:
                path.unlink()


def _remove(done: Path) -> None:
    for suffix in (".wav", ".ogg", ".tmp"):
        done.with_suffix(suffix).unlink(missing_ok=True)
    done.unlink(missing_ok=True)


def _open(path: Path, flags: int) -> BinaryIO:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    return os.fdopen(descriptor, "r+b")
