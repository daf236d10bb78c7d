"""WAV files of 16 kHz, 16 bits, stereo, that are valid at each moment of being written.

The PCM is appended first, and then the header's sizes are updated in one write of 80 bytes, which
lies in one page and so is never torn by the end of the process. A player ignores bytes after the
end that the header states, and ``repair`` makes them part of the file.

From 4 GiB on (18.6 h) the file is RF64 (EBU Tech 3306), whose 64-bit sizes take the place that a
JUNK chunk reserves until then. FFmpeg, libsndfile and browsers read both.
"""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
CHANNELS = 2
FRAME = 2 * CHANNELS
"""Bytes of one sample of both channels."""
DATA_AT = 80
"""The offset of the first frame."""

Frames = NDArray[np.int16]
"""Of shape (n, 2)."""

_LARGEST = 0xFFFF_FFFF
_FORMAT = struct.pack(
    "<4sIHHIIHH", b"fmt ", 16, 1, CHANNELS, RATE, RATE * FRAME, FRAME, 8 * FRAME // CHANNELS
)


def header(frames: int) -> bytes:
    """Return the ``DATA_AT`` bytes before the PCM."""
    data = frames * FRAME
    whole = DATA_AT - 8 + data
    if whole <= _LARGEST:
        start = struct.pack("<4sI4s4sI28x", b"RIFF", whole, b"WAVE", b"JUNK", 28)
        return start + _FORMAT + struct.pack("<4sI", b"data", data)
    start = struct.pack("<4sI4s4sI", b"RF64", _LARGEST, b"WAVE", b"ds64", 28)
    sizes = struct.pack("<QQQI", whole, data, frames, 0)
    return start + sizes + _FORMAT + struct.pack("<4sI", b"data", _LARGEST)


class WavWriter:
    """Appends to a new file of mode 0600. Methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.frames = 0
        try:
            _write(self._file, header(0), 0)
        except OSError:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise

    def append(self, frames: Frames) -> None:
        """Append all ``frames``, or raise OSError and leave the file as it was."""
        pcm = np.ascontiguousarray(frames, dtype="<i2").tobytes()
        end = DATA_AT + self.frames * FRAME
        try:
            _write(self._file, pcm, end)
            _write(self._file, header(self.frames + len(frames)), 0)
        except OSError:
            os.ftruncate(self._file, end)
            raise
        self.frames += len(frames)

    def close(self) -> None:
        os.close(self._file)


def repair(path: Path) -> int:
    """Make the header state all whole frames of a file that nobody writes; return their number."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(file).st_size
        frames = max(size - DATA_AT, 0) // FRAME
        if os.pread(file, DATA_AT, 0) != header(frames):
            _write(file, header(frames), 0)
        if size != (whole := DATA_AT + frames * FRAME):
            os.ftruncate(file, whole)
        return frames
    finally:
        os.close(file)


def blocks(path: Path, frames: int = RATE) -> Iterator[Frames]:
    """Yield a file's PCM in blocks of ``frames``; the last may be shorter."""
    with path.open("rb") as file:
        file.seek(DATA_AT)
        while block := file.read(frames * FRAME):
            yield _frames(block)


async def decode(file: AsyncIterable[bytes]) -> AsyncIterator[Frames]:
    """Yield the PCM of a file whose bytes come in chunks of any size."""
    skip, rest = DATA_AT, b""
    async for chunk in file:
        skipped = min(skip, len(chunk))
        skip -= skipped
        rest += chunk[skipped:]
        if len(rest) >= FRAME:
            yield _frames(rest)
            rest = rest[len(rest) // FRAME * FRAME :]


def _frames(pcm: bytes) -> Frames:
    whole = len(pcm) // FRAME * FRAME
    return np.frombuffer(pcm[:whole], dtype="<i2").reshape(-1, CHANNELS)


def _write(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:  # a write that hits the end of the disk is short, and the next one fails
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
