"""``POST /v1/calls``: call a number from one of the agent's numbers."""

from __future__ import annotations

from typing import Any, Literal

from aiohttp import web
from pydantic import ConfigDict, Field, StrictBool, StrictStr
from pydantic.alias_generators import to_camel

from core.errors import BadRequest, Conflict, Detail, Unprocessable
from core.models import Agent, PhoneNumber
from gateway.api import faults
from gateway.api.calls import MAX_WAIT_S, detail
from gateway.api.from_number import (
    E164,
    Metadata,
    not_a_caller_id,
    plan_from,
)
from gateway.api.waiting import until_over
from gateway.calls.plan import CallPlan
from gateway.calls.trunks import SipOverrides, may_call_out
from gateway.calls.variables import Variables, fill
from gateway.calls.views import CallDetail
from gateway.fields.recording import AsksForRecording
from gateway.http.body import documented, parse_body
from gateway.http.idempotency import once
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.http.route import Route
from gateway.keys import AGENTS, NUMBERS, STORE, STREAMS, WEBHOOKS, call_services
from gateway.lookup.agents import check_takes_calls
from gateway.store.call_status import Call
from gateway.store.database import Scope

# API clients send these; call screening is not implemented.
IGNORED = frozenset({"callScreeningIdentity", "callScreeningPurpose"})


class CamelSip(SipOverrides):
    """Another outbound trunk for this call; null or missing: the number's own."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")


class CreateCall(AsksForRecording):
    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", json_schema_extra=documented(IGNORED)
    )

    agent_id: StrictStr = Field(min_length=1, max_length=64)
    to_number: E164 = Field(description="E.164.", examples=["+15551234567"])
    from_number_id: StrictStr | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="One of the agent's numbers; default: the first bound one that may call out.",
    )
    initial_greeting: StrictStr | None = Field(
        None, max_length=2000, description="Replaces beginMessage; empty: the agent waits."
    )
    voice: StrictStr | None = Field(None, min_length=1, max_length=200)
    system_prompt: StrictStr | None = Field(
        None, min_length=1, max_length=50_000, description="If set, this call runs hosted."
    )
    variables: Variables | None = Field(
        None,
        description="Replace {{name}} in the agent's texts and prompts; null: by an empty text. "
        "Names without a value are left unchanged.",
    )
    model_tier: Literal["turbo", "balanced", "max"] | None = None
    sip: CamelSip | None = None
    metadata: Metadata | None = Field(None, description="Stored on the record.")
    wait_for_completion: StrictBool | None = Field(
        None, description="Respond when the call has ended, or after maxWaitSeconds."
    )
    max_wait_seconds: float | None = Field(
        None, ge=0, le=MAX_WAIT_S, allow_inf_nan=False, strict=True, description="Default: 120."
    )


async def create(request: web.Request) -> web.StreamResponse:
    """Dial, and respond once the phone's leg exists, or (waitForCompletion) the call has ended.

    The overrides apply to this call only; they do not change the agent.
    """
    principal = request[PRINCIPAL]
    body = await parse_body(request, CreateCall, ignored=IGNORED)

    async def effect() -> dict[str, Any]:
        if not body.wait_for_completion:
            return (await detail(request, await _placed(request, body))).wire()
        # Before the dial: a request that may not wait must not have called anybody.
        with request.app[STREAMS].one(principal.auth_id):
            wait_s = 120 if body.max_wait_seconds is None else body.max_wait_seconds
            call = await until_over(request, await _placed(request, body), wait_s)
        return (await detail(request, call)).wire()

    return await once(request, request.app[STORE], principal, body, effect)


async def _placed(request: web.Request, body: CreateCall) -> Call:
    plan = await _plan(request, body)
    placed = await call_services(request.app).outbound.place(plan)
    call = await request.app[STORE].call(Scope(None), placed.call_id)
    assert call is not None, "it was kept a moment ago, and calls are not removed"
    return call


async def _plan(request: web.Request, body: CreateCall) -> CallPlan:
    scope = scope_of(request)
    agent = tailored(await request.app[AGENTS].require(scope, body.agent_id), body)
    number = await _caller_id(request, scope, body)
    record = bool(body.wants_recording)
    await check_takes_calls(agent, number.auth_id, request.app[WEBHOOKS], record=record)
    try:
        return await plan_from(
            request, number, agent, body.to_number, body.metadata or {}, body.sip, record=record
        )
    except BadRequest as error:
        # /sip/call answers a bad address with 400, this path with 422.
        fault = Detail("sip.outboundAddress", error.message, "value_error")
        raise Unprocessable(error.message, details=[fault]) from None


def tailored(agent: Agent, body: CreateCall) -> Agent:
    """Return the agent as pinned for this call; Unprocessable if ``variables`` make it too long."""
    changes: dict[str, Any] = {}
    if body.system_prompt is not None:
        changes |= {"system_prompt": body.system_prompt, "voice_mode": "hosted"}
    if body.initial_greeting is not None:
        changes["begin_message"] = body.initial_greeting or None
    if body.voice is not None:
        changes["voice"] = body.voice
    if body.model_tier is not None:
        # A model that the agent names would override the tier.
        changes |= {"model_tier": body.model_tier, "model": None}
    config = agent.config.model_copy(update=changes)
    return fill(agent.model_copy(update={"config": config}), body.variables or {})


async def _caller_id(request: web.Request, scope: Scope, body: CreateCall) -> PhoneNumber:
    """Return the number to call from.

    Raises Conflict ``NO_NUMBER``, Unprocessable, Forbidden ``FROM_NUMBER_NOT_ALLOWED``.
    """
    numbers = await request.app[NUMBERS].of_agent(scope, body.agent_id)
    if body.from_number_id is not None:
        # One answer for unknown numbers, another tenant's, and another agent's.
        numbers = [number for number in numbers if number.id == body.from_number_id]
        if not numbers:
            fault = Detail("fromNumberId", "It is none of the agent's numbers", "value_error")
            raise Unprocessable(f"fromNumberId: {fault.message}", details=[fault])
    if not numbers:
        raise Conflict("The agent has no number to call from", code="NO_NUMBER")
    for number in numbers:
        if may_call_out(number):
            return number
    raise not_a_caller_id()


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/calls",
        create,
        "Call a number from one of the agent's",
        body=CreateCall,
        answer=CallDetail,
        errors=(*faults.CALL_FROM_NUMBER, (409, "NO_NUMBER"), *faults.DIAL),
        idempotent=True,
    ),
)
