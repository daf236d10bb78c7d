"""A call as server-sent events: replay of its events, live events, and finally ``ended``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import web
from aiohttp.client_exceptions import ClientConnectionResetError

from core.models import Turn
from gateway.api import faults
from gateway.api.calls import find
from gateway.api.waiting import Last, attentive, over, valid_for_s
from gateway.calls.views import EventView
from gateway.http.pace import PACE
from gateway.http.principal import PRINCIPAL
from gateway.http.route import Route
from gateway.keys import STREAMS
from gateway.store.call_status import Call, StoredEvent

Render = Callable[[Iterable[StoredEvent]], Iterable[bytes]]


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events: the call's events so far, new ones as they happen, finally ``ended``.

    ``Last-Event-ID`` (the number in ``id:``) resumes after that event. When the token expires,
    the stream sends ``expired`` and ends.
    """
    return await _serve(request, await find(request), _timeline)


async def transcript(request: web.Request) -> web.StreamResponse:
    """Server-sent events: ``connected``, each ``turn`` so far and as it happens, finally ``ended``.

    A turn sent again with the same ``id`` replaces the earlier one. ``Last-Event-ID`` resumes as
    in the call's events. When the token expires, the stream sends ``expired`` and ends.
    """
    call = await find(request)
    opening = _frame("connected", {"callId": call.id, "status": call.status})
    return await _serve(request, call, _conversation, opening=opening)


def _timeline(batch: Iterable[StoredEvent]) -> Iterable[bytes]:
    for event in batch:
        yield _frame(event.type, EventView.of(event).wire(), event.seq)


def _conversation(batch: Iterable[StoredEvent]) -> Iterable[bytes]:
    """Render the turns of a batch; of a turn reported twice, the newer report."""
    newest = {event.data.get("id"): event for event in batch if event.type == "turn"}
    for event in sorted(newest.values(), key=lambda event: event.seq):
        yield _frame("turn", Turn.model_validate(event.data).wire(), event.seq)


async def _serve(
    request: web.Request, call: Call, render: Render, *, opening: bytes = b""
) -> web.StreamResponse:
    after = _last_event_id(request)
    with request.app[STREAMS].one(request[PRINCIPAL].auth_id):
        # Event streams are always UTF-8, but some clients decode text/* as Latin-1 by default.
        stream = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
            }
        )
        valid_s = valid_for_s(request)
        await stream.prepare(request)
        try:
            async with asyncio.timeout(None if valid_s == math.inf else valid_s) as valid:
                if opening:
                    await stream.write(opening)
                await _follow(request, stream, call.id, after, render)
        except (ClientConnectionResetError, ConnectionResetError):
            pass  # the client disconnected, as most streams end
        except TimeoutError:
            if not valid.expired():
                raise
            await _say_expired(request, stream)
        return stream


async def _follow(
    request: web.Request, stream: web.StreamResponse, call_id: str, after: int, render: Render
) -> None:
    clock = asyncio.get_running_loop()
    pace = request.app[PACE]
    last = Last(pace.settle_s)
    async with attentive(request, call_id) as news:
        silent_since = clock.time()
        while not over(request):
            seen = await news.look(after)
            for frame in render(seen.events):
                await stream.write(frame)
                silent_since = clock.time()
            after = seen.events[-1].seq if seen.events else after
            if last.told(seen):
                status = seen.call.status if seen.call else None
                await stream.write(_frame("ended", {"status": status}))
                return
            while (moment := clock.time()) < last.deadline:
                if await news.wait(min(silent_since + pace.heartbeat_s, last.deadline) - moment):
                    break
                if clock.time() >= silent_since + pace.heartbeat_s:
                    await stream.write(b": heartbeat\n\n")
                    silent_since = clock.time()


async def _say_expired(request: web.Request, stream: web.StreamResponse) -> None:
    """Send ``expired`` and close the connection: to reconnect, the client needs a new token."""
    stream.force_close()
    transport = request.transport
    if transport is None:
        return
    if transport.get_write_buffer_size():
        # The client has stopped reading; a write would keep the connection until it reads again.
        transport.abort()
        return
    message = "The token has expired; connect again with a new one"
    with contextlib.suppress(ConnectionResetError):
        await stream.write(_frame("expired", {"code": "TOKEN_EXPIRED", "message": message}))


def _frame(event: str, data: dict[str, Any], number: int | None = None) -> bytes:
    # JSON keeps the text on one line, so that it cannot forge an event. It is ASCII, for clients
    # that treat U+2028 as a line break or decode the stream as Latin-1.
    numbered = "" if number is None else f"id: {number}\n"
    return f"{numbered}event: {event}\ndata: {json.dumps(data)}\n\n".encode()


def _last_event_id(request: web.Request) -> int:
    given = request.headers.get("Last-Event-ID", "")
    return int(given) if given.isascii() and given.isdecimal() and len(given) < 19 else 0


ROUTES: tuple[Route, ...] = (
    Route(
        "GET /v1/calls/{id}/events",
        events,
        "A call's timeline as server-sent events: replay, then live",
        content="text/event-stream",
        errors=(faults.NO_CALL, faults.STREAM_LIMIT),
    ),
    Route(
        "GET /v1/calls/{id}/transcript/stream",
        transcript,
        "A call's conversation as server-sent events: replay, then live",
        content="text/event-stream",
        errors=(faults.NO_CALL, faults.STREAM_LIMIT),
    ),
)
