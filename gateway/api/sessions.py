"""``/api/v1/sessions``: dispatch an agent to a phone, and get the outcome.

A session is a call: the same record, with the same id, as in ``/v1/calls``.
"""

from __future__ import annotations

from typing import Any, Literal

from aiohttp import web
from pydantic import ConfigDict, Field, StrictStr
from pydantic.alias_generators import to_camel

from core.models import Model
from gateway.api import faults
from gateway.api.calls import AS_TEXT, TranscriptQuery, detail, find, in_format
from gateway.api.from_number import (
    E164,
    Metadata,
    not_a_caller_id,
    plan_from,
)
from gateway.calls.plan import CallPlan
from gateway.calls.trunks import may_call_out
from gateway.calls.views import CallDetail, Transcript
from gateway.fields.recording import AsksForRecording
from gateway.http.body import parse_body
from gateway.http.envelope import Envelope, envelope
from gateway.http.idempotency import once
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.http.route import Route
from gateway.keys import AGENTS, NUMBERS, STORE, WEBHOOKS, call_services
from gateway.lookup.agents import check_takes_calls
from gateway.store.database import Scope


class Dispatch(AsksForRecording):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    agent_id: StrictStr = Field(min_length=1, max_length=64)
    channel: Literal["voice"]
    from_number: E164 = Field(description="One of the caller's numbers, E.164.")
    to_number: E164 = Field(description="E.164.", examples=["+15551234567"])
    metadata: Metadata | None = Field(None, description="Stored on the record.")


class Dispatched(Model):
    id: str = Field(examples=["call_…"])
    status: Literal["queued"]


async def dispatch(request: web.Request) -> web.StreamResponse:
    """Accept a call. It is dialled after the response; its record shows the outcome."""
    principal = request[PRINCIPAL]
    body = await parse_body(request, Dispatch)

    async def effect() -> dict[str, Any]:
        plan = await _plan(request, body)
        await call_services(request.app).outbound.accept(plan)
        return envelope(Dispatched(id=plan.call_id, status="queued"), "Accepted").wire()

    return await once(request, request.app[STORE], principal, body, effect, status=202)


async def show(request: web.Request) -> web.StreamResponse:
    call = await find(request)
    return envelope(await detail(request, call)).response()


async def transcript(request: web.Request) -> web.StreamResponse:
    """As `GET /v1/calls/{id}/transcript`; JSON is in the envelope."""
    return await in_format(request, lambda found: envelope(found).response())


async def _plan(request: web.Request, body: Dispatch) -> CallPlan:
    scope = scope_of(request)
    number = await request.app[NUMBERS].by_number(scope, body.from_number)
    if number is None or not may_call_out(number):
        raise not_a_caller_id()
    # An operator calls on behalf of the number's owner, with an agent that the owner may use.
    agent = await request.app[AGENTS].require(Scope(number.auth_id), body.agent_id)
    record = bool(body.wants_recording)
    await check_takes_calls(agent, number.auth_id, request.app[WEBHOOKS], record=record)
    return await plan_from(
        request, number, agent, body.to_number, body.metadata or {}, record=record
    )


def _dispatching(path: str, summary: str) -> Route:
    return Route(
        f"POST {path}",
        dispatch,
        summary,
        body=Dispatch,
        answer=Envelope[Dispatched],
        status=202,
        errors=faults.CALL_FROM_NUMBER,
        idempotent=True,
    )


ROUTES: tuple[Route, ...] = (
    _dispatching("/api/v1/sessions/dispatch", "Send an agent to a phone"),
    _dispatching("/api/v1/sessions", "Send an agent to a phone (the same)"),
    Route(
        # "dispatch" is not an id and has no GET.
        "GET /api/v1/sessions/{id:(?!dispatch$)[^/]+}",
        show,
        "One session: the call's record, with its transcript",
        answer=Envelope[CallDetail],
        errors=(faults.NO_CALL,),
    ),
    Route(
        "GET /api/v1/sessions/{id}/transcript",
        transcript,
        "A session's transcript, in order",
        query=TranscriptQuery,
        answer=Envelope[Transcript],
        also=AS_TEXT,
        errors=(faults.NO_CALL,),
    ),
)
