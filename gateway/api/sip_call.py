"""``POST /sip/call``: check the request, then place the call."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from aiohttp import web
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StrictBool,
    StrictInt,
    StrictStr,
)

from core.errors import BadRequest
from core.models import Agent
from core.settings import Settings
from gateway.api import faults
from gateway.api.dry_run import DryRun, explain
from gateway.calls.plan import CallPlan
from gateway.calls.trunks import (
    SipOverrides,
    has_a_say,
    make_trunk,
    sip_objection,
)
from gateway.fields.names import GivenName
from gateway.fields.recording import AsksForRecording
from gateway.http.body import parse_body
from gateway.http.idempotency import once
from gateway.http.principal import PRINCIPAL
from gateway.http.route import Route
from gateway.keys import AGENTS, POLICY, SETTINGS, SIP_GUARD, STORE, WEBHOOKS, call_services
from gateway.lookup.agents import Agents, check_records, check_takes_calls
from gateway.store.database import Principal, Scope
from gateway.store.webhooks import WebhookStore
from sip.addresses import check_dtmf, check_headers, normalize_phone
from sip.dial import MAX_RINGING_S

_MAX_METADATA_BYTES = 16 * 1024


class SipCallRequest(AsksForRecording):
    """Unknown fields are ignored."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "example": {
                "room_name": "call-room-123",
                "participant_name": "John Doe",
                "participant_identity": "caller-456",
                "from_phone_number": "+15105550123",
                "to_phone_number": "+15551234567",
            }
        },
    )

    room_name: GivenName
    participant_name: GivenName
    participant_identity: GivenName
    from_phone_number: StrictStr
    to_phone_number: StrictStr
    sip: SipOverrides | None = None
    agent: StrictStr | None = Field(
        None, description="The agent that joins; null: none. Default: DEFAULT_AGENT."
    )
    agent_id: StrictStr | None = Field(None, description="Another name of `agent`.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="Stored on the record.")
    ringing_timeout_s: StrictInt = Field(30, ge=1, le=MAX_RINGING_S)
    max_duration_s: StrictInt | None = Field(
        None, ge=1, le=86_400, description="Default: the agent's maxDurationMs."
    )
    headers: dict[StrictStr, StrictStr] = Field(
        default_factory=dict, description="X-… headers of the INVITE."
    )
    dtmf: StrictStr = Field("", description="Digits sent after the answer; w waits 0.5 s.")
    dry_run: StrictBool = Field(False, description="Describe the call without placing it.")
    disable_recording: StrictBool | None = Field(
        None,
        # Unknown fields are ignored, and this one must not be.
        validation_alias=AliasChoices("disable_recording", "disableRecording"),
        description="true: do not record the call, whatever the other fields say.",
    )
    # Unknown fields are ignored, and what a caller is told or asked must not be.
    disclosure: None = Field(None, description="Only an agent has one.")
    consent: None = Field(None, description="Only an agent has one.")
    redaction: None = Field(None, description="Only an agent has one.")


class SipCallResponse(BaseModel):
    status: Literal["initiated"]
    room_name: str
    participant_identity: str
    participant_id: str = Field(examples=["PA_abc123"])
    sip_call_id: str = Field(examples=["SCL_xyz789"])
    call_id: str = Field(description="The call's id, for GET /v1/calls/{id}.", examples=["call_…"])


class SipCallAnswer(RootModel[SipCallResponse | DryRun]):
    """``DryRun`` for a request with ``dry_run``."""


async def create(request: web.Request) -> web.StreamResponse:
    """Dial, and respond once the SIP participant is in the room."""
    principal = request[PRINCIPAL]
    body = await parse_body(request, SipCallRequest)
    app = request.app
    plan = await make_plan(body, principal, app[SETTINGS], app[AGENTS], app[WEBHOOKS])
    outbound = call_services(app).outbound
    if body.dry_run:
        room_exists = await outbound.room_exists(plan)
        objection = request.app[POLICY].objection(
            plan.to_number,
            from_number=plan.from_number,
            trunk_country=plan.trunk.country,
            tenant=principal.auth_id is not None,
        )
        if objection is None:
            objection = await sip_objection(request.app[SIP_GUARD], plan.trunk)
        own_address = body.sip is not None and body.sip.outbound_address is not None
        explained = explain(
            plan, own_address=own_address, room_exists=room_exists, objection=objection
        )
        return web.json_response(explained.model_dump())

    async def effect() -> dict[str, Any]:
        placed = await outbound.place(plan)
        return SipCallResponse(
            status="initiated",
            room_name=plan.room_name,
            participant_identity=plan.participant_identity,
            participant_id=placed.ids.participant_id,
            sip_call_id=placed.ids.sip_call_id,
            call_id=placed.call_id,
        ).model_dump()

    return await once(request, request.app[STORE], principal, body, effect)


async def make_plan(
    body: SipCallRequest,
    principal: Principal,
    settings: Settings,
    agents: Agents,
    webhooks: WebhookStore,
) -> CallPlan:
    """Return the checked plan. Checks names first, then numbers, the trunk, and the rest."""
    room_name = _not_blank(body.room_name, "Room name", "room_name")
    name = _not_blank(body.participant_name, "Participant name", "participant_name")
    identity = _not_blank(body.participant_identity, "Participant identity", "participant_identity")
    to_number = normalize_phone(body.to_phone_number, "to_phone_number")
    from_number = normalize_phone(body.from_phone_number, "from_phone_number")
    trunk = make_trunk(body.sip, settings, principal.auth_id)
    headers = check_headers(body.headers)
    dtmf = check_dtmf(body.dtmf) if body.dtmf else ""
    metadata = _check_metadata(body.metadata)
    record = bool(body.wants_recording)
    agent, named = await _choose_agent(body, Scope(principal.auth_id), settings, agents)
    if agent is not None:
        await check_takes_calls(agent, principal.auth_id, webhooks, record=record)
    else:
        check_records(None, record=record)
    agent_limit_s = math.ceil(agent.config.max_duration_ms / 1000) if agent else 86_400
    return CallPlan(
        principal=principal,
        room_name=room_name,
        participant_identity=identity,
        participant_name=name,
        from_number=from_number,
        to_number=to_number,
        trunk=trunk,
        own_trunk=has_a_say(body.sip),
        agent=agent,
        agent_named=named,
        ringing_timeout_s=body.ringing_timeout_s,
        max_duration_s=body.max_duration_s or agent_limit_s,
        headers=headers,
        dtmf=dtmf,
        metadata=metadata,
        record=record,
    )


async def _choose_agent(
    body: SipCallRequest, scope: Scope, settings: Settings, agents: Agents
) -> tuple[Agent | None, bool]:
    given = body.model_fields_set & {"agent", "agent_id"}
    wanted = body.agent if body.agent is not None else body.agent_id
    if given and wanted is None:
        return None, True
    agent = await agents.require(scope, wanted if wanted is not None else settings.default_agent)
    return agent, wanted is not None


def _not_blank(value: str, what: str, field: str) -> str:
    if not value.strip():
        raise BadRequest(f"{what} cannot be empty")
    return value


def _check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(metadata)) > _MAX_METADATA_BYTES:
        raise BadRequest(f"metadata is larger than {_MAX_METADATA_BYTES} bytes")
    return metadata


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /sip/call",
        create,
        "Dial a phone number into a room, with an agent",
        body=SipCallRequest,
        answer=SipCallAnswer,
        errors=(
            faults.INVALID_PHONE_NUMBER,
            (400, "INVALID_OUTBOUND_ADDRESS"),
            faults.DESTINATION,
            faults.NO_ROOM,
            faults.PARTICIPANT_EXISTS,
            *faults.CALLED_AGENT,
            *faults.LIMITS,
            faults.NO_TRUNK,
            faults.NOT_CONFIGURED,
            *faults.DIAL,
            faults.STORE,
        ),
        idempotent=True,
    ),
)
