"""``/v1/calls``: the record of calls, and the timeline as it happens."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from aiohttp import web
from aiohttp.client_exceptions import ClientConnectionResetError
from pydantic import AwareDatetime, Field

from core.database import Scope
from core.errors import NotFound
from core.models import (
    Call,
    CallType,
    Direction,
    DisconnectionReason,
    Model,
    Status,
    StoredEvent,
    Timestamp,
    Turn,
)
from core.store import CallFilter, Store
from gateway.auth import PRINCIPAL
from gateway.body import parse_query
from gateway.keys import STOPPING, STORE, TIMELINE
from gateway.paging import Listing, Page
from gateway.route import Route

HEARTBEAT_S = 15.0


class CallQuery(Page):
    status: Status | None = None
    direction: Direction | None = None
    agent_id: str | None = Field(None, min_length=1, max_length=64)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


class CallView(Model):
    """A call as the API shows it."""

    id: str
    agent_id: str | None
    agent_version: int | None
    phone_number_id: str | None
    from_number: str | None
    to_number: str | None
    direction: Direction
    type: CallType
    status: Status
    disconnection_reason: DisconnectionReason | None
    sip_status_code: int | None
    sip_reason: str | None
    room_name: str
    participant_identity: str
    participant_id: str | None
    sip_call_id: str | None
    created_at: Timestamp
    ringing_at: Timestamp | None
    answered_at: Timestamp | None
    ended_at: Timestamp | None
    duration_seconds: float | None
    metadata: dict[str, Any]

    @classmethod
    def of(cls, call: Call) -> CallView:
        return cls(**call.model_dump(), duration_seconds=call.duration_seconds)


class CallDetail(CallView):
    transcripts: list[Turn]

    @classmethod
    def with_turns(cls, call: Call, turns: list[Turn]) -> CallDetail:
        return cls(**call.model_dump(), duration_seconds=call.duration_seconds, transcripts=turns)


class CallList(Listing[CallView]):
    pass


class EventView(Model):
    """One line of the timeline, as SSE carries it (``event:`` is its type)."""

    id: str
    type: str
    at: Timestamp
    source: Literal["gateway", "worker", "livekit", "reconciler"]
    data: dict[str, Any]

    @classmethod
    def of(cls, event: StoredEvent) -> EventView:
        return cls(**event.model_dump(exclude={"seq", "call_id"}))


async def index(request: web.Request) -> web.StreamResponse:
    query = parse_query(request, CallQuery)
    where = CallFilter(
        statuses=[query.status] if query.status else [],
        direction=query.direction,
        agent_id=query.agent_id,
        since=query.since,
        until=query.until,
    )
    scope = Scope(request[PRINCIPAL].auth_id)
    calls, total = await request.app[STORE].calls(
        scope, where, limit=query.limit, offset=query.offset
    )
    page = CallList.of([CallView.of(call) for call in calls], total, query)
    return web.json_response(page.wire())


async def show(request: web.Request) -> web.StreamResponse:
    store = request.app[STORE]
    call = await find(request, store)
    detail = CallDetail.with_turns(call, await store.turns(call.id))
    return web.json_response(detail.wire())


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events: what happened so far, what happens, and ``ended``.

    ``Last-Event-ID`` (the number in ``id:``) resumes after that event.
    """
    store = request.app[STORE]
    call = await find(request, store)
    after = _last_event_id(request)
    stream = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    await stream.prepare(request)
    try:
        await _stream(request, stream, store, call.id, after)
    except (ClientConnectionResetError, ConnectionResetError):
        pass  # the reader went away, which is how most streams end
    return stream


async def find(request: web.Request, store: Store) -> Call:
    """The call named in the path. Raises NotFound, for another tenant's too."""
    scope = Scope(request[PRINCIPAL].auth_id)
    call = await store.call(scope, request.match_info["id"])
    if call is None:
        raise NotFound("Call not found", code="CALL_NOT_FOUND")
    return call


async def _stream(
    request: web.Request, stream: web.StreamResponse, store: Store, call_id: str, after: int
) -> None:
    stopping = request.app[STOPPING]
    clock = asyncio.get_running_loop()
    silent_since = clock.time()
    async with request.app[TIMELINE].listen(call_id) as news:
        # A reader that is gone shows in the transport long before a write fails.
        while not stopping.is_set() and not _gone(request):
            # The status is read before the events: what made it final is then among them.
            call = await store.call(Scope(None), call_id)
            for event in await store.events(call_id, after=after):
                after = event.seq
                view = json.dumps(EventView.of(event).wire(), ensure_ascii=False)
                await stream.write(
                    f"id: {event.seq}\nevent: {event.type}\ndata: {view}\n\n".encode()
                )
                silent_since = clock.time()
            if call is None or call.ended:
                status = call.status if call else None
                await stream.write(
                    f'event: ended\ndata: {{"status": {json.dumps(status)}}}\n\n'.encode()
                )
                return
            if clock.time() - silent_since >= HEARTBEAT_S:
                await stream.write(b": heartbeat\n\n")
                silent_since = clock.time()
            await news.wait()


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _last_event_id(request: web.Request) -> int:
    given = request.headers.get("Last-Event-ID", "")
    return int(given) if given.isascii() and given.isdecimal() and len(given) < 19 else 0


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/calls",
        handler=index,
        summary="List calls, newest first",
        tag="Calls",
        query=CallQuery,
        answer=CallList,
    ),
    Route(
        method="GET",
        path="/v1/calls/{id}",
        handler=show,
        summary="One call, with its transcript",
        tag="Calls",
        answer=CallDetail,
        errors=((404, "CALL_NOT_FOUND"),),
    ),
    Route(
        method="GET",
        path="/v1/calls/{id}/events",
        handler=events,
        summary="A call's timeline as server-sent events: replay, then live",
        tag="Calls",
        content="text/event-stream",
        errors=((404, "CALL_NOT_FOUND"),),
    ),
)
