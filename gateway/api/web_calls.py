"""``POST /v1/calls/web``: a call with an agent from a browser.

The room is created for the call and the agent is dispatched to it; the visitor gets a token for
that room only. A task follows the call until the visitor has joined or the time is up.
"""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web
from pydantic import ConfigDict, Field, StrictStr
from pydantic.alias_generators import to_camel

from core.models import Model, Timestamp, now
from gateway.api import faults
from gateway.api.from_number import Metadata
from gateway.calls.variables import Variables, fill
from gateway.calls.web import JOIN_WITHIN, visitor_token
from gateway.fields.recording import AsksForRecording
from gateway.http.body import parse_body
from gateway.http.idempotency import once
from gateway.http.principal import PRINCIPAL
from gateway.http.route import Route
from gateway.keys import AGENTS, SETTINGS, STORE, WEBHOOKS, call_services
from gateway.lookup.agents import check_takes_calls
from gateway.store.database import Scope

log = logging.getLogger(__name__)


class CreateWebCall(AsksForRecording):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    agent_id: StrictStr = Field(min_length=1, max_length=64)
    variables: Variables | None = Field(
        None,
        description="Replace {{name}} in the agent's texts and prompts; null: by an empty text. "
        "Names without a value are left unchanged.",
    )
    metadata: Metadata | None = Field(None, description="Stored on the record.")


class WebCall(Model):
    """The values for a browser to join: ``room.connect(livekitUrl, accessToken)``."""

    id: str = Field(description="The call's id, for GET /v1/calls/{id}.", examples=["call_…"])
    call_id: str = Field(description="Another name of id.")
    access_token: str = Field(description="Valid for this call only: to speak and listen.")
    livekit_url: str = Field(examples=["wss://livekit.example.com"])
    expires_at: Timestamp = Field(description="If nobody has joined by then, the call ends.")


async def create(request: web.Request) -> web.StreamResponse:
    """Open a room with the agent; return a token to join it from a browser within 30 seconds."""
    principal = request[PRINCIPAL]
    body = await parse_body(request, CreateWebCall)
    settings, web_calls = request.app[SETTINGS], call_services(request.app).web_calls

    async def effect() -> dict[str, Any]:
        agent = await request.app[AGENTS].require(Scope(principal.auth_id), body.agent_id)
        record = bool(body.wants_recording)
        await check_takes_calls(agent, principal.auth_id, request.app[WEBHOOKS], record=record)
        tailored = fill(agent, body.variables or {})
        call, claim = await web_calls.open(principal, tailored, body.metadata or {}, record=record)
        return WebCall(
            id=call.id,
            call_id=call.id,
            access_token=visitor_token(settings, claim),
            livekit_url=settings.livekit_browser_url,
            expires_at=now() + JOIN_WITHIN,
        ).wire()

    return await once(request, request.app[STORE], principal, body, effect)


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/calls/web",
        create,
        "Call an agent from a browser",
        body=CreateWebCall,
        answer=WebCall,
        errors=(
            *faults.CALLED_AGENT,
            faults.PARTICIPANT_EXISTS,
            *faults.LIMITS,
            faults.NOT_CONFIGURED,
            faults.CALL_FAILED,
            faults.LIVEKIT_UNAVAILABLE,
            faults.AGENT_UNAVAILABLE,
            faults.STORE,
        ),
        idempotent=True,
    ),
)
