"""``/v1/calls/{id}/recording``: the audio, in parts or whole, and its deletion."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, Callable
from typing import IO

from aiohttp import hdrs, web
from pydantic import BaseModel, ConfigDict, Field

from core.errors import Gone, RangeNotSatisfiable
from core.models import Model
from core.recordings.config import Format
from gateway.api import faults
from gateway.api.recordings import fault
from gateway.api.recordings.opening import call_of, opened, opened_by_link
from gateway.http.body import parse_query
from gateway.http.principal import PRINCIPAL
from gateway.http.route import Route
from gateway.keys import RECORDINGS, STREAMS, WORKSHOP
from gateway.recordings.ranges import Part, part_of

# A player that is paused reads nothing for a while, and asks again when it has been cut off.
_WRITE_DEADLINE_S = 60.0
_BLOCK = 64 * 1024
_TYPES = {"wav": "audio/wav", "ogg": "audio/ogg"}

Read = Callable[[int, int], AsyncGenerator[bytes, None]]


class RecordingQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Format | None = Field(None, description="Default: as it is stored.")
    token: str | None = Field(None, max_length=200, description="Of a link: see recordingUrl.")


class RecordingDeleted(Model):
    success: bool = True


async def recording(request: web.Request) -> web.StreamResponse:
    """Answers ranges (one at a time). ``recordingUrl`` of a call opens it without Authorization."""
    query = parse_query(request, RecordingQuery)
    if query.token is not None and PRINCIPAL not in request:
        found = await opened_by_link(request, query.token)
    else:
        found = await opened(request)
    stored, format = found.recording, query.format or found.recording.format
    with request.app[STREAMS].one(found.call.auth_id):
        if request.method != hdrs.METH_HEAD:
            await found.note(request, "audio")
        name = re.sub(r"[^A-Za-z0-9_-]", "_", stored.call_id)
        headers: dict[str, str] = {
            hdrs.CONTENT_TYPE: _TYPES[format],
            hdrs.CONTENT_DISPOSITION: f'inline; filename="{name}.{format}"',
        }
        if format == stored.format and not stored.more:
            headers[hdrs.ETAG] = f'"{stored.sha256}"'
            service = request.app[RECORDINGS]
            return await _send(
                request, stored.bytes, headers, lambda start, end: service.read(stored, start, end)
            )
        headers[hdrs.ETAG] = f'"{stored.digest}-{format}"'
        async with request.app[WORKSHOP].converted(stored, format) as file:
            size = os.fstat(file.fileno()).st_size
            return await _send(request, size, headers, lambda start, end: _blocks(file, start, end))


async def delete(request: web.Request) -> web.StreamResponse:
    """Deletes the audio for good. One that is not stored yet is deleted when it comes."""
    call = await call_of(request)
    if not await request.app[RECORDINGS].delete_of(call):
        raise Gone("The recording was deleted", code="RECORDING_DELETED")
    return web.json_response(RecordingDeleted().wire())


async def _send(
    request: web.Request, size: int, headers: dict[str, str], read: Read
) -> web.StreamResponse:
    headers |= {
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CACHE_CONTROL: "private, no-store",
        "X-Content-Type-Options": "nosniff",
    }
    asked = request.headers.get(hdrs.RANGE), request.headers.get(hdrs.IF_RANGE)
    if request.method == hdrs.METH_HEAD:
        asked = None, None  # RFC 9110 §14.2: ranges are GET's
    part = part_of(size, headers[hdrs.ETAG], *asked)
    if part is None:
        raise RangeNotSatisfiable(
            "The range is outside the recording", headers={hdrs.CONTENT_RANGE: f"bytes */{size}"}
        )
    response = web.StreamResponse(status=200 if part.whole else 206, headers=headers)
    response.content_length = part.length
    if not part.whole:
        response.headers[hdrs.CONTENT_RANGE] = part.content_range
    if request.method == hdrs.METH_HEAD:
        await response.prepare(request)
        return response
    return await _streamed(request, response, part, read)


async def _streamed(
    request: web.Request, response: web.StreamResponse, part: Part, read: Read
) -> web.StreamResponse:
    async with contextlib.aclosing(read(part.start, part.end)) as blocks:
        # The first block before the headers: a store that is away is 503.
        block = await anext(blocks, b"")
        await response.prepare(request)
        while block:
            try:
                async with asyncio.timeout(_WRITE_DEADLINE_S):
                    await response.write(block)
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the client reads too slowly") from None
            block = await anext(blocks, b"")
    await response.write_eof()
    return response


async def _blocks(file: IO[bytes], start: int, end: int) -> AsyncGenerator[bytes, None]:
    while start < end:
        block = await asyncio.to_thread(os.pread, file.fileno(), min(_BLOCK, end - start), start)
        start += len(block)
        yield block


ROUTES: tuple[Route, ...] = (
    Route(
        "GET /v1/calls/{id}/recording",
        recording,
        "A call's recording",
        query=RecordingQuery,
        content="audio/*",
        errors=(
            *fault.OPENING,
            *fault.DECODING,
            (416, "RANGE_NOT_SATISFIABLE"),
            faults.STREAM_LIMIT,
        ),
        linked=True,
    ),
    Route(
        "DELETE /v1/calls/{id}/recording",
        delete,
        "Delete a call's recording",
        answer=RecordingDeleted,
        errors=(faults.NO_CALL, fault.NO_RECORDING, fault.DELETED, fault.AWAY, faults.STORE),
    ),
)
