"""A call as server-sent events: what happened so far, what happens, and ``ended``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.client_exceptions import ClientConnectionResetError

from core.database import Scope
from core.models import Call, StoredEvent, Turn
from gateway.call_views import EventView
from gateway.calls import find
from gateway.keys import STOPPING, STORE, TIMELINE
from gateway.route import Route
from gateway.waiting import Last, gone

HEARTBEAT_S = 15.0


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events: what happened so far, what happens, and ``ended``.

    ``Last-Event-ID`` (the number in ``id:``) resumes after that event.
    """
    return await _serve(request, await find(request), _timeline)


async def transcript(request: web.Request) -> web.StreamResponse:
    """Server-sent events: ``connected``, a ``turn`` for each so far and as it comes, ``ended``.

    A turn that comes again with the same ``id`` replaces the one before it. ``Last-Event-ID``
    resumes as in the call's events.
    """
    call = await find(request)
    opening = _frame("connected", {"callId": call.id, "status": call.status})
    return await _serve(request, call, _conversation, types=("turn",), opening=opening)


def _timeline(batch: Iterable[StoredEvent]) -> Iterable[bytes]:
    for event in batch:
        yield _frame(event.type, EventView.of(event).wire(), event.seq)


def _conversation(batch: Iterable[StoredEvent]) -> Iterable[bytes]:
    """Of a turn told twice in one batch, the newer telling."""
    newest = {event.data.get("id"): event for event in batch}
    for event in sorted(newest.values(), key=lambda event: event.seq):
        yield _frame("turn", Turn.model_validate(event.data).wire(), event.seq)


async def _serve(
    request: web.Request,
    call: Call,
    render: Callable[[Iterable[StoredEvent]], Iterable[bytes]],
    *,
    types: Sequence[str] = (),
    opening: bytes = b"",
) -> web.StreamResponse:
    after = _last_event_id(request)
    # It is UTF-8 by its specification, but clients that do not know take text/* for Latin-1.
    stream = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
    )
    await stream.prepare(request)
    try:
        if opening:
            await stream.write(opening)
        await _follow(request, stream, call.id, after, types, render)
    except (ClientConnectionResetError, ConnectionResetError):
        pass  # the reader went away, which is how most streams end
    return stream


async def _follow(
    request: web.Request,
    stream: web.StreamResponse,
    call_id: str,
    after: int,
    types: Sequence[str],
    render: Callable[[Iterable[StoredEvent]], Iterable[bytes]],
) -> None:
    store, stopping = request.app[STORE], request.app[STOPPING]
    clock = asyncio.get_running_loop()
    silent_since = clock.time()
    last = Last(store)
    async with request.app[TIMELINE].listen(call_id) as news:
        while not stopping.is_set() and not gone(request):
            # The status is read before the events: what made it final is then among them.
            call = await store.call(Scope(None), call_id)
            over = call is None or await last.told(call)
            batch = await store.events(call_id, after=after, types=types)
            for frame in render(batch):
                await stream.write(frame)
                silent_since = clock.time()
            after = batch[-1].seq if batch else after
            if over:
                await stream.write(_frame("ended", {"status": call.status if call else None}))
                return
            if clock.time() - silent_since >= HEARTBEAT_S:
                await stream.write(b": heartbeat\n\n")
                silent_since = clock.time()
            await news.wait()


def _frame(event: str, data: dict[str, Any], number: int | None = None) -> bytes:
    # JSON keeps what was said on one line, so that it cannot forge an event; in ASCII also for
    # readers that take U+2028 for the end of a line, or the stream for Latin-1.
    numbered = "" if number is None else f"id: {number}\n"
    return f"{numbered}event: {event}\ndata: {json.dumps(data)}\n\n".encode()


def _last_event_id(request: web.Request) -> int:
    given = request.headers.get("Last-Event-ID", "")
    return int(given) if given.isascii() and given.isdecimal() and len(given) < 19 else 0


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/calls/{id}/events",
        handler=events,
        summary="A call's timeline as server-sent events: replay, then live",
        tag="Calls",
        content="text/event-stream",
        errors=((404, "CALL_NOT_FOUND"),),
    ),
    Route(
        method="GET",
        path="/v1/calls/{id}/transcript/stream",
        handler=transcript,
        summary="A call's conversation as server-sent events: replay, then live",
        tag="Calls",
        content="text/event-stream",
        errors=((404, "CALL_NOT_FOUND"),),
    ),
)
