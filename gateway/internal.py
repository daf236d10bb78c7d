"""What workers ask and tell: their call's brief, its events, their own heartbeat.

Each request carries a token of ours (core.tokens), scoped to one call or one worker.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Self

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, Field, model_validator

from core.database import Scope
from core.errors import AppError, NotFound, Unauthenticated
from core.models import CallBrief, CallEvent, Heartbeat, Turn, now
from core.tokens import Audience, InvalidToken
from gateway.body import parse_body
from gateway.keys import METRICS, STORE, TIMELINE, TOKENS
from gateway.route import Route

MAX_EVENTS = 100


# What both databases keep in an INTEGER column.
_MAX_CALLS = 1_000_000
# Any clock's time, as long as every reader can be shown it in UTC.
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


class WorkerEvent(CallEvent):
    """An event that can be folded and shown: what cannot is refused, not kept and stumbled on."""

    at: AwareDatetime = Field(default_factory=now)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not _EARLIEST <= self.at < _LATEST:
            raise ValueError("at is no time of a call")
        if self.type == "turn":
            Turn.model_validate(self.data)
        code = self.data.get("sipStatusCode")
        if self.type == "call.ended" and isinstance(code, int) and not 100 <= code <= 699:
            raise ValueError("sipStatusCode is no SIP status")
        return self


class Beat(Heartbeat):
    capacity: int = Field(ge=0, le=_MAX_CALLS)
    active: int = Field(ge=0, le=_MAX_CALLS)


class Events(BaseModel):
    events: list[WorkerEvent] = Field(min_length=1, max_length=MAX_EVENTS)


class Gone(AppError):
    """The call is over; nothing is left to do for it."""

    status = 410
    default_code = "CALL_ENDED"


async def heartbeat(request: web.Request) -> web.StreamResponse:
    worker_id = _bearer(request, "switchroom:worker")
    beat = await parse_body(request, Beat)
    if beat.worker_id != worker_id:
        raise Unauthenticated("The token is another worker's")
    await request.app[STORE].heartbeat(beat)
    return web.json_response({"ok": True})


async def brief(request: web.Request) -> web.StreamResponse:
    call_id = _call(request)
    job = await request.app[STORE].job(call_id)
    if job is None:
        raise NotFound("Call not found", code="CALL_NOT_FOUND")
    call, agent, max_duration_ms = job
    if call.ended or agent is None:
        raise Gone("The call is over, or takes no agent")
    answer = CallBrief(
        call_id=call.id,
        direction=call.direction,
        participant_identity=call.participant_identity,
        from_number=call.from_number,
        to_number=call.to_number,
        metadata=call.metadata,
        max_duration_ms=max_duration_ms,
        agent=agent,
    )
    return web.json_response(answer.wire())


async def events(request: web.Request) -> web.StreamResponse:
    call_id = _call(request)
    body = await parse_body(request, Events)
    stored = await request.app[TIMELINE].append(call_id, body.events, "worker")
    if stored is None:
        raise NotFound("Call not found", code="CALL_NOT_FOUND")
    request.app[METRICS].events.labels("worker").inc(len(stored))
    call = await request.app[STORE].call(Scope(None), call_id)
    # An agent that comes too late learns here that nobody needs it any more.
    answer: dict[str, Any] = {"accepted": len(stored), "over": call is None or call.ended}
    return web.json_response(answer)


def _call(request: web.Request) -> str:
    call_id = _bearer(request, "switchroom:call")
    if call_id != request.match_info["id"]:
        raise Unauthenticated("The token is another call's")
    return call_id


def _bearer(request: web.Request, audience: Audience) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    tokens = request.app[TOKENS]
    if scheme.lower() != "bearer" or tokens is None:
        raise Unauthenticated("A worker's token is needed", code="MISSING_AUTH_HEADER")
    try:
        return tokens.verify(token.strip(), audience)
    except InvalidToken:
        raise Unauthenticated("The token is not valid") from None


ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/internal/workers/heartbeat",
        handler=heartbeat,
        summary="A worker lives",
        tag="Internal",
        body=Heartbeat,
        internal=True,
    ),
    Route(
        method="GET",
        path="/internal/calls/{id}",
        handler=brief,
        summary="What a worker needs to know of its call",
        tag="Internal",
        internal=True,
    ),
    Route(
        method="POST",
        path="/internal/calls/{id}/events",
        handler=events,
        summary="What a worker saw",
        tag="Internal",
        body=Events,
        internal=True,
    ),
)
