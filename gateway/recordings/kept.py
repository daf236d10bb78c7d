"""Finished conversions, kept for a short time: a player asks for a file in many ranges."""

from __future__ import annotations

import asyncio
import os
from typing import IO

from core.recordings.config import Format

Key = tuple[str, Format]
"""What identifies the recording and its content, and the format."""

_FILES = 4
_FOR_S = 60.0


class Kept:
    """Unnamed files, each until nobody has asked for it for a minute, or newer ones need its place.

    Each taker gets a descriptor of its own, so that a file may be dropped while it is read.
    """

    def __init__(self, *, files: int = _FILES, for_s: float = _FOR_S) -> None:
        self._most = files
        self._for_s = for_s
        self._files: dict[Key, tuple[IO[bytes], asyncio.TimerHandle]] = {}

    def add(self, key: Key, file: IO[bytes]) -> None:
        """Keep what is in the file, whose owner still closes it."""
        self._drop(key)
        while len(self._files) >= self._most:
            self._drop(next(iter(self._files)))
        timer = asyncio.get_running_loop().call_later(self._for_s, self._drop, key)
        self._files[key] = _another(file), timer

    def take(self, key: Key) -> IO[bytes] | None:
        """Return the file, to be read by position and closed; None if it is not kept."""
        if (found := self._files.get(key)) is None:
            return None
        file = _another(found[0])
        self.add(key, file)
        return file

    def close(self) -> None:
        for key in list(self._files):
            self._drop(key)

    def _drop(self, key: Key) -> None:
        if (found := self._files.pop(key, None)) is not None:
            file, timer = found
            timer.cancel()
            file.close()


def _another(file: IO[bytes]) -> IO[bytes]:
    return os.fdopen(os.dup(file.fileno()), "rb")
