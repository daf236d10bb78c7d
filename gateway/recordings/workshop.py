"""Recordings in unnamed temporary files, to be decoded: a killed gateway leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import IO, TypeVar

from core.errors import ServerFault, Unavailable
from core.recordings.config import Format
from gateway.recordings import audio
from gateway.recordings.audio import Peaks, Undecodable
from gateway.recordings.service import RecordingService
from gateway.store.database import whole
from gateway.store.recordings.recordings import StoredRecording

log = logging.getLogger(__name__)

# Each has a file or two, whose size is the recording's. Decoding one takes a processor.
_FILES = 16
_DECODERS = 2

_T = TypeVar("_T")


class Workshop:
    def __init__(self, service: RecordingService, *, files: int = _FILES) -> None:
        self._service = service
        self._free = files
        self._decoders = asyncio.Semaphore(_DECODERS)

    @contextlib.asynccontextmanager
    async def converted(
        self, recording: StoredRecording, format: Format
    ) -> AsyncIterator[IO[bytes]]:
        """Yield the recording in ``format``. Raises Unavailable."""
        async with self._fetched(recording) as source:
            with await asyncio.to_thread(tempfile.TemporaryFile) as target:
                await self._decode(lambda: audio.convert(source, recording.format, target, format))
                yield target

    async def peaks(self, recording: StoredRecording, width: int) -> Peaks:
        """Raises Unavailable."""
        async with self._fetched(recording) as source:
            return await self._decode(
                lambda: audio.peaks_of(source, recording.format, width, recording.duration_ms)
            )

    @contextlib.asynccontextmanager
    async def _fetched(self, recording: StoredRecording) -> AsyncIterator[IO[bytes]]:
        if not self._free:
            raise Unavailable(
                "Too many recordings are being decoded", code="RECORDINGS_BUSY", retry_after_s=5
            )
        self._free -= 1
        try:
            with await asyncio.to_thread(tempfile.TemporaryFile) as file:
                blocks = self._service.read(recording, 0, recording.bytes)
                async with contextlib.aclosing(blocks):
                    async for block in blocks:
                        await asyncio.to_thread(file.write, block)
                file.seek(0)
                yield file
        finally:
            self._free += 1

    @whole
    async def _decode(self, work: Callable[[], _T]) -> _T:
        # To the end even if the client leaves: the thread still uses the files.
        async with self._decoders:
            try:
                return await asyncio.to_thread(work)
            except Undecodable:
                log.exception("a stored recording cannot be decoded")
                raise ServerFault("The recording cannot be decoded") from None
