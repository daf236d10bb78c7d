"""``/v1/agents/{id}/session``: a call on a client's own WebSocket (docs/sessions.md).

``POST`` creates the call and a token that opens one socket within a minute, for a browser.
``GET`` is the socket. It is authorized by that token, or by an API token, which creates the call
itself. The worker gets everything after the client's first message as it is.
"""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import quote

from aiohttp import ClientError, web
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from core.errors import AppError, BadRequest, Gone, TooManyRequests, Unavailable
from core.models import Model, Timestamp
from core.settings import Settings
from core.streams.messages import GONE
from gateway.api import faults
from gateway.api.from_number import Metadata
from gateway.api.streams.opening import PROTOCOL, Opening
from gateway.api.streams.passing import pass_frames
from gateway.calls.streams.relay import TRY_LATER
from gateway.calls.variables import Variables, fill
from gateway.fields.recording import AsksForRecording
from gateway.http.body import parse_body
from gateway.http.idempotency import once
from gateway.http.principal import PRINCIPAL
from gateway.http.route import WEBSOCKET, Route
from gateway.http.sockets import Socket, SocketClosed, open_socket
from gateway.keys import AGENTS, SETTINGS, STORE, WEBHOOKS, call_services
from gateway.lookup.agents import check_takes_calls
from gateway.store.database import Scope

NOT_AUTHORIZED = 1008
"""WebSocket close code: policy violation."""


class CreateSession(AsksForRecording):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    variables: Variables | None = Field(
        None,
        description="Replace {{name}} in the agent's texts and prompts; null: by an empty text. "
        "The client may set names that are missing here, and none of these.",
    )
    metadata: Metadata | None = Field(None, description="Stored on the record.")


class NewSession(Model):
    """The values for a browser: ``new WebSocket(url, ["switchroom", "token." + token])``."""

    session_id: str = Field(
        description="The call's id, for GET /v1/calls/{id}.", examples=["call_…"]
    )
    token: str = Field(description="Opens one socket of this session.")
    url: str = Field(examples=["wss://voice.example.com/v1/agents/agt_…/session"])
    expires_at: Timestamp = Field(description="If nobody has connected by then, the call ends.")


async def create(request: web.Request) -> web.StreamResponse:
    """Create a session; return a token with which a browser connects to it within a minute."""
    principal, agent_id = request[PRINCIPAL], request.match_info["id"]
    body = await parse_body(request, CreateSession)
    sessions = call_services(request.app).stream_sessions

    async def effect() -> dict[str, Any]:
        agent = await request.app[AGENTS].require(Scope(principal.auth_id), agent_id)
        record = bool(body.wants_recording)
        await check_takes_calls(agent, principal.auth_id, request.app[WEBHOOKS], record=record)
        call, token = await sessions.open(
            principal,
            fill(agent, body.variables or {}),
            kind="socket",
            direction="web",
            metadata=body.metadata or {},
            record=record,
        )
        return NewSession(
            session_id=call.id,
            token=token.text,
            url=_address(request.app[SETTINGS], agent_id),
            expires_at=token.expires_at,
        ).wire()

    return await once(request, request.app[STORE], principal, body, effect, status=201)


async def connect(request: web.Request) -> web.StreamResponse:
    """Open a session's socket: `docs/sessions.md` describes what is said on it.

    Errors before the upgrade are HTTP responses, later ones close codes.
    """
    if request.query_string:
        raise BadRequest("The address takes no parameters: a token in it would be logged")
    opening = await Opening.of(request)
    socket = await open_socket(request, [PROTOCOL])
    try:
        wanted = await opening.wanted(socket)
        await pass_frames(request, socket, wanted.session, wanted.attach, first=wanted.first)
    except (AppError, SocketClosed) as error:
        await opening.failed(error)
        if isinstance(error, AppError):
            await _refuse(socket, error)
    return socket


async def _refuse(socket: Socket, error: AppError) -> None:
    match error:
        case Gone():
            code = GONE
        case Unavailable() | TooManyRequests():
            code = TRY_LATER
        case _:
            code = NOT_AUTHORIZED
    message = {"type": "error", "seq": 1, "code": error.code, "message": error.message}
    with contextlib.suppress(ClientError, ConnectionError):
        await socket.send_json(message)
        await socket.close(code=code, message=error.code.encode())


def _address(settings: Settings, agent_id: str) -> str:
    base = settings.public_base_url
    return f"ws{base.removeprefix('http')}/v1/agents/{quote(agent_id, safe='')}/session"


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/agents/{id}/session",
        create,
        "Create a session, and a token for a browser to connect to it",
        body=CreateSession,
        answer=NewSession,
        status=201,
        errors=(
            *faults.CALLED_AGENT,
            *faults.LIMITS,
            faults.NOT_CONFIGURED,
            faults.AGENT_UNAVAILABLE,
            faults.STORE,
        ),
        idempotent=True,
    ),
    Route(
        "GET /v1/agents/{id}/session",
        connect,
        "A session's WebSocket",
        status=101,
        content=WEBSOCKET,
        errors=(
            (400, "BAD_REQUEST"),
            (400, "INVALID_REQUEST"),
            (400, "INVALID_HOST"),
            (401, "INVALID_AUTH_HEADER"),
            (401, "UNAUTHORIZED"),
            (403, "ORIGIN_NOT_ALLOWED"),
            (403, "HOST_NOT_ALLOWED"),
            faults.NOT_CONFIGURED,
            (503, "AUTH_UNAVAILABLE"),
        ),
        public=True,  # it takes tokens in other ways, too
    ),
)
