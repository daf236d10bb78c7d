"""Recordings in unnamed temporary files, to be decoded: a killed gateway leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import IO, TypeVar

from core.errors import ServerFault, Unavailable
from core.recordings.config import Format
from gateway.recordings import audio
from gateway.recordings.audio import Peaks, Undecodable
from gateway.recordings.kept import Kept
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
        self._held: Counter[str | None] = Counter()
        self._kept = Kept()
        self._decoders = asyncio.Semaphore(_DECODERS)

    @contextlib.asynccontextmanager
    async def converted(
        self, recording: StoredRecording, format: Format
    ) -> AsyncIterator[IO[bytes]]:
        """Yield the recording in ``format``, to be read by position. Raises Unavailable."""
        key = f"{recording.call_id} {recording.digest}", format
        # For a kept one, too: what is read stays on the disk when it is kept no longer.
        with self._seat(recording.auth_id):
            if (kept := self._kept.take(key)) is not None:
                with kept:
                    yield kept
                return
            async with self._whole(recording) as (source, stored), _temporary() as target:
                await self._decode(lambda: audio.convert(source, stored, target, format))
                # A recording that we encrypt is on no disk for longer than it must be.
                if not any(part.encrypted for part in recording.parts):
                    self._kept.add(key, target)
                yield target

    async def peaks(self, recording: StoredRecording, width: int) -> Peaks:
        """Raises Unavailable."""
        with self._seat(recording.auth_id):
            async with self._whole(recording) as (source, stored):
                longest_ms = max(part.duration_ms for part in recording.parts)
                return await self._decode(lambda: audio.peaks_of(source, stored, width, longest_ms))

    def close(self) -> None:
        self._kept.close()

    @contextlib.asynccontextmanager
    async def _whole(self, recording: StoredRecording) -> AsyncIterator[tuple[IO[bytes], Format]]:
        """Yield the recording in a file, and its format there; its parts are joined as WAV."""
        async with contextlib.AsyncExitStack() as stack:
            sources = [
                (await stack.enter_async_context(self._fetched(part)), part.format)
                for part in recording.parts
            ]
            if len(sources) == 1:
                yield sources[0]
                return
            async with _temporary() as joined:
                await self._decode(lambda: audio.join(sources, joined))
                await _on_disk(partial(joined.seek, 0))
                yield joined, "wav"

    @contextlib.asynccontextmanager
    async def _fetched(self, recording: StoredRecording) -> AsyncIterator[IO[bytes]]:
        async with _temporary() as file:
            blocks = self._service.read(recording, 0, recording.bytes)
            async with contextlib.aclosing(blocks):
                async for block in blocks:
                    await _on_disk(partial(file.write, block))
            await _on_disk(partial(file.seek, 0))
            yield file

    @contextlib.contextmanager
    def _seat(self, tenant: str | None) -> Iterator[None]:
        """Take a place for a tenant, who always leaves as many as it has to others."""
        if self._held[tenant] >= self._free:
            raise Unavailable(
                "Too many recordings are being decoded", code="RECORDINGS_BUSY", retry_after_s=5
            )
        self._free -= 1
        self._held[tenant] += 1
        try:
            yield
        finally:
            self._free += 1
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]

    @whole
    async def _decode(self, work: Callable[[], _T]) -> _T:
        # To the end even if the client leaves: the thread still uses the files.
        async with self._decoders:
            try:
                return await _on_disk(work)
            except Undecodable:
                log.exception("a stored recording cannot be decoded")
                raise ServerFault("The recording cannot be decoded") from None


@contextlib.asynccontextmanager
async def _temporary() -> AsyncIterator[IO[bytes]]:
    file = await _on_disk(tempfile.TemporaryFile)
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # it writes what it could not write before
            file.close()


async def _on_disk(work: Callable[[], _T]) -> _T:
    """Do it in a thread. Raises Unavailable if the disk is full."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        log.error("cannot write a temporary file", extra={"reason": error.strerror})
        raise Unavailable(
            "The gateway's disk has no space to decode the recording",
            code="RECORDINGS_BUSY",
            retry_after_s=5,
        ) from None
