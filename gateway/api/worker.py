"""Requests from workers: a call's brief, its events and transfers, and the worker's heartbeat.

Each request carries one of our tokens (core.tokens), scoped to one call or one worker.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Self

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, Field, model_validator

from core.errors import AppError, Gone, NotFound, TooEarly, Unauthenticated, Unprocessable
from core.events import GATEWAYS_OWN
from core.jobs import Assignment, CallBrief, Heartbeat, InboundRoom
from core.models import CallEvent, Turn, now
from core.recovery import Lost, Replacement
from core.tokens import Audience, InvalidToken, TokenIssuer
from core.transfers import TransferOrder, TransferResult
from gateway.api import faults
from gateway.calls.dispatcher import answering_webhook, brief_of
from gateway.calls.recovery.recovered import recovered
from gateway.calls.recovery.successor import own_ids
from gateway.http.body import parse_body
from gateway.http.route import Route
from gateway.keys import (
    CALL_SERVICES,
    METRICS,
    RECORDINGS,
    SETTINGS,
    STORE,
    TIMELINE,
    WEBHOOKS,
    call_services,
)
from gateway.store.call_status import StoredEvent
from gateway.store.database import Scope
from gateway.store.lost.call_memory import is_memory, memory_of

MAX_EVENTS = 100

# The agent is dispatched while the call's record is being written, and may be faster than a busy
# database. The longest that one statement may take (gateway.store.database).
_RECORD_WITHIN = timedelta(seconds=10)

# Fits an INTEGER column of both databases.
_MAX_CALLS = 1_000_000
# Accept any worker's clock whose time can be shown in UTC.
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


class WorkerEvent(CallEvent):
    """An event that can be folded and shown; anything else is rejected rather than stored."""

    at: AwareDatetime = Field(default_factory=now)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not _EARLIEST <= self.at < _LATEST:
            raise ValueError("at is not a time during a call")
        if self.type in GATEWAYS_OWN:
            raise ValueError("only the gateway reports events of this type")
        if self.type == "turn":
            Turn.model_validate(self.data)
        if is_memory(self):
            memory_of(self)
        code = self.data.get("sipStatusCode")
        if self.type == "call.ended" and isinstance(code, int) and not 100 <= code <= 699:
            raise ValueError("sipStatusCode is not a SIP status code")
        return self


class Beat(Heartbeat):
    capacity: int = Field(ge=0, le=_MAX_CALLS)
    active: int = Field(ge=0, le=_MAX_CALLS)


class LostReport(Lost):
    seen_at: AwareDatetime

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not _EARLIEST <= self.seen_at < _LATEST:
            raise ValueError("seenAt is not a time during a call")
        return self


class Events(BaseModel):
    events: list[WorkerEvent] = Field(min_length=1, max_length=MAX_EVENTS)


async def heartbeat(request: web.Request) -> web.StreamResponse:
    worker_id = _bearer(request, "switchroom:worker")
    beat = await parse_body(request, Beat)
    if beat.worker_id != worker_id:
        raise Unauthenticated("The token is another worker's")
    await request.app[STORE].heartbeat(beat)
    if (services := request.app[CALL_SERVICES]) is not None:
        services.recovery.connections.heard(worker_id, request.transport)
    return web.json_response({"ok": True})


async def brief(request: web.Request) -> web.StreamResponse:
    call_id, epoch = agent_of_token(request)
    store = request.app[STORE]
    found = await store.call_and_agent(call_id)
    if found is None:
        raise _no_record(request)
    call, agent = found
    if call.ended or agent is None:
        raise Gone("The call is over, or takes no agent")
    if epoch != call.agent_epoch:
        raise _taken_over()
    if call.direction == "inbound" and call.type == "pstn":
        await call_services(request.app).inbound.handed_over(call_id)
    webhook = await answering_webhook(call, agent, request.app[WEBHOOKS])
    tenant = request.app[SETTINGS].tenant_recordings(call.auth_id)
    so_far = None
    if epoch:
        so_far = recovered(call, await store.events(call_id), await store.tools(call_id))
    return web.json_response(brief_of(call, agent, webhook, tenant, so_far).revealed())


async def inbound(request: web.Request) -> web.StreamResponse:
    _bearer(request, "switchroom:worker")
    room = await parse_body(request, InboundRoom)
    calls = call_services(request.app).inbound
    return web.json_response((await calls.assign(room)).revealed())


async def events(request: web.Request) -> web.StreamResponse:
    call_id, epoch = agent_of_token(request)
    body = await parse_body(request, Events)
    # Of two events with one id the first counts, and an id that names a call can be guessed.
    if any(_names_another(event.id, call_id) for event in body.events):
        raise Unprocessable("An event's id names another call")
    if any(event.id.startswith(own_ids(call_id)) for event in body.events):
        raise Unprocessable("An event has an id of the gateway's")
    # Before they are appended: a batch that fails here is sent again as a whole.
    await request.app[RECORDINGS].fold(call_id, body.events)
    stored = await request.app[TIMELINE].append(call_id, body.events, "worker", epoch=epoch)
    if stored is None:
        raise _no_record(request)
    if any(event.type == "agent.resumed" for event in stored):
        await _resumed(request, call_id, stored)
    if any(event.type == "agent.left" for event in stored):
        # The last event: turns are reported repeatedly, but counted once, here.
        request.app[METRICS].conversed(await request.app[STORE].turns(call_id))
    call = await request.app[STORE].call(Scope(None), call_id)
    # A late agent learns here that its call has ended, a lost one that another has taken over.
    over = call is None or call.ended or epoch < call.agent_epoch
    answer: dict[str, Any] = {"accepted": len(stored), "over": over}
    return web.json_response(answer)


async def _resumed(request: web.Request, call_id: str, stored: list[StoredEvent]) -> None:
    """Measure for how long the caller was without an agent."""
    why = {
        event.data.get("epoch"): str(event.data.get("why"))
        for event in await request.app[STORE].events(call_id, types=["agent.lost"])
    }
    for event in stored:
        epoch, lost_ms = event.data.get("epoch"), event.data.get("lostMs")
        if event.type == "agent.resumed" and isinstance(epoch, int):
            known = lost_ms if isinstance(lost_ms, int | float) else None
            request.app[METRICS].agent_resumed(why.get(epoch - 1, "unknown"), known)


def _names_another(event_id: str, call_id: str) -> bool:
    return event_id.startswith("call_") and not event_id.startswith(f"{call_id}_")


async def lost(request: web.Request) -> web.StreamResponse:
    """Take the report that the token's agent is lost. It may be repeated."""
    call_id, epoch = agent_of_token(request)
    report = await parse_body(request, LostReport)
    comes = await call_services(request.app).recovery.lost(call_id, epoch, report)
    if comes is None:
        raise _no_record(request)
    return web.json_response(Replacement(comes=comes).wire())


def agent_of_token(request: web.Request) -> tuple[str, int]:
    """Return the id of the call in the path, and the epoch of the agent that has the token.

    Raises Unauthenticated if the token is not for that call.
    """
    tokens, token = _token(request)
    try:
        call_id, epoch = tokens.agent_of(token)
    except InvalidToken:
        raise _not_valid() from None
    if call_id != request.match_info["id"]:
        raise Unauthenticated("The token is another call's")
    return call_id, epoch


def _taken_over() -> Gone:
    return Gone("Another agent has taken over")


def _no_record(request: web.Request) -> AppError:
    """Return the error for a missing record: not written yet, or unknown."""
    tokens, token = _token(request)
    if now() - tokens.call_token_made(token) < _RECORD_WITHIN:
        return TooEarly("The call is not on record yet", code="CALL_NOT_READY")
    return NotFound("Call not found", code="CALL_NOT_FOUND")


def _bearer(request: web.Request, audience: Audience) -> str:
    tokens, token = _token(request)
    try:
        return tokens.verify(token, audience)
    except InvalidToken:
        raise _not_valid() from None


def _not_valid() -> Unauthenticated:
    return Unauthenticated("The token is not valid")


def _token(request: web.Request) -> tuple[TokenIssuer, str]:
    """Return the request's token, not verified, and the issuer to verify it with."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    services = request.app[CALL_SERVICES]
    if scheme.lower() != "bearer" or services is None:  # no LiveKit keys, no workers
        raise Unauthenticated("A worker's token is needed", code="MISSING_AUTH_HEADER")
    return services.tokens, token.strip()


async def transfer(request: web.Request) -> web.StreamResponse:
    """Respond when the outcome is known. A repeated request waits for the same transfer."""
    call_id, epoch = agent_of_token(request)
    order = await parse_body(request, TransferOrder)
    call = await request.app[STORE].call(Scope(None), call_id)
    if call is not None and epoch != call.agent_epoch:
        raise _taken_over()
    transfers = call_services(request.app).transfers
    return web.json_response((await transfers.carry_out(call_id, order)).wire())


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /internal/workers/heartbeat",
        heartbeat,
        "Worker heartbeat",
        body=Heartbeat,
        internal=True,
    ),
    Route(
        "GET /internal/calls/{id}",
        brief,
        "A call's brief, for its worker",
        answer=CallBrief,
        errors=(faults.NO_CALL, faults.CALL_ENDED, faults.CALL_NOT_READY),
        internal=True,
    ),
    Route(
        "POST /internal/calls/inbound",
        inbound,
        "The call whose room a worker is in",
        body=InboundRoom,
        answer=Assignment,
        errors=(faults.CALL_ENDED, faults.LIVEKIT_UNAVAILABLE),
        internal=True,
    ),
    Route(
        "POST /internal/calls/{id}/events",
        events,
        "Report events of a call",
        body=Events,
        errors=(faults.NO_CALL, faults.CALL_NOT_READY),
        internal=True,
    ),
    Route(
        "POST /internal/calls/{id}/lost",
        lost,
        "Report that the call's agent is lost",
        body=LostReport,
        answer=Replacement,
        errors=(faults.NO_CALL, faults.CALL_NOT_READY),
        internal=True,
    ),
    Route(
        "POST /internal/calls/{id}/transfer",
        transfer,
        "Hand the caller over to the agent's transfer number",
        body=TransferOrder,
        answer=TransferResult,
        errors=(
            faults.NO_CALL,
            (409, "CALL_NOT_ANSWERED"),
            (409, "NO_TRANSFER_NUMBER"),
            faults.CALL_ENDED,
            faults.LIVEKIT_UNAVAILABLE,
        ),
        internal=True,
    ),
)
