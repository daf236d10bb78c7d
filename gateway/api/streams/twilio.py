"""``/v1/sessions/twilio``: sessions for calls of Twilio's, whose audio comes by Media Streams."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Annotated, Any, Literal

from aiohttp import WSMsgType, hdrs, web
from pydantic import BaseModel, ConfigDict, Field, StrictStr, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from core.errors import AppError, Forbidden, Gone, Unauthenticated, Unavailable
from core.models import Model, Timestamp
from core.streams.messages import TwilioAttach
from gateway.api import faults
from gateway.api.from_number import Metadata
from gateway.api.streams.passing import pass_frames
from gateway.calls.streams.relay import BROKEN, OVER, TRY_LATER
from gateway.calls.variables import Variables, fill
from gateway.fields.recording import AsksForRecording
from gateway.http.body import is_form, parse_body, parse_query, read_form
from gateway.http.idempotency import once, replayed
from gateway.http.pace import PACE
from gateway.http.principal import PRINCIPAL
from gateway.http.route import WEBSOCKET, Route
from gateway.http.sockets import Socket, SocketClosed, open_socket, read
from gateway.keys import AGENTS, NEWCOMERS, STORE, WEBHOOKS, call_services
from gateway.lookup.agents import check_takes_calls
from gateway.numbers.signatures import HEADER as SIGNATURE
from gateway.store.call_status import Call
from gateway.store.database import Scope
from gateway.store.streams.sessions import Session

log = logging.getLogger(__name__)

NOT_AUTHORIZED = 1008
_XML = "text/xml"

# Twilio names callers that are no phones ``client:ann`` or ``sip:ann@example.com``.
Party = Annotated[str, StringConstraints(strict=True, pattern=r"^[\x21-\x7e]{1,128}$")]
Sid = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9]{1,64}$")]


class CreateTwilioSession(AsksForRecording):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    agent_id: StrictStr = Field(min_length=1, max_length=64)
    from_: Party = Field(alias="from", description="The caller.", examples=["+18005551234"])
    to: Party = Field(description="The called number.", examples=["+19005551234"])
    instance_id: StrictStr | None = Field(
        None, max_length=128, description="Stored in the record's metadata as instanceId."
    )
    variables: Variables | None = Field(
        None,
        description="Replace {{name}} in the agent's texts and prompts; null: by an empty text. "
        "Names without a value are left unchanged.",
    )
    metadata: Metadata | None = Field(None, description="Stored on the record.")


class TwilioSession(Model):
    """A session, and the TwiML that connects a call of Twilio's to it."""

    session_id: str = Field(description="Also the call's id.", examples=["call_…"])
    twiml: str = Field(description="Twilio's answer to the call, within a minute.")
    stream_url: str
    expires_at: Timestamp = Field(description="Twilio must have connected by then.")


class Key(BaseModel):
    model_config = ConfigDict(extra="ignore")

    key: str = Field("", max_length=128, description="From the TwiML.")


async def create(request: web.Request) -> web.StreamResponse:
    """Create a session. With `Accept: text/xml` the response is the TwiML itself.

    Twilio may also send its own form here, if this is the voice URL of one of your numbers: the
    number's agent answers. The form's signature is checked then, and no token is needed.
    """
    if is_form(request):
        return await _voice_url(request)
    principal = request[PRINCIPAL]
    body = await parse_body(request, CreateTwilioSession)
    services = call_services(request.app)

    async def effect() -> dict[str, Any]:
        agent = await request.app[AGENTS].require(Scope(principal.auth_id), body.agent_id)
        record = bool(body.wants_recording)
        await check_takes_calls(agent, principal.auth_id, request.app[WEBHOOKS], record=record)
        instance = {} if body.instance_id is None else {"instanceId": body.instance_id}
        call, token = await services.stream_sessions.open(
            principal,
            fill(agent, body.variables or {}),
            kind="twilio",
            direction="inbound",
            from_number=body.from_,
            to_number=body.to,
            metadata={**(body.metadata or {}), **instance},
            record=record,
        )
        return TwilioSession(
            session_id=call.id,
            twiml=services.twilio_sessions.connect(call, token),
            stream_url=services.twilio_sessions.stream_url,
            expires_at=token.expires_at,
        ).wire()

    answer = await once(request, request.app[STORE], principal, body, effect)
    if _XML not in request.headers.get(hdrs.ACCEPT, ""):
        return answer
    return xml(json.loads(answer.text or "{}")["twiml"], replayed(answer))


async def _voice_url(request: web.Request) -> web.StreamResponse:
    form = await read_form(request)
    twilio = call_services(request.app).twilio_sessions
    number = await twilio.number_of(form, request.raw_path, request.headers.get(SIGNATURE))
    return xml(await twilio.answer(number, form))


async def resume(request: web.Request) -> web.StreamResponse:
    """Say how a call goes on whose stream has ended. Twilio asks, as the TwiML told it to."""
    call, session, form = await callback(request)
    twilio = call_services(request.app).twilio_sessions
    return xml(await twilio.go_on(call, session, form))


async def status(request: web.Request) -> web.StreamResponse:
    """Take Twilio's report about a stream. A call whose stream broke is brought back."""
    call, session, form = await callback(request)
    event = form.get("StreamEvent", "")
    log.info("Twilio reports", extra={"call_id": call.id, "what": event[:32]})
    if event == "stream-error" and session is not None:
        call_services(request.app).twilio_sessions.bring_back(call, session)
    return web.Response(status=204)


async def callback(
    request: web.Request, *, of_child: bool = False
) -> tuple[Call, Session | None, Any]:
    """Return the call and session of Twilio's request, and its form. Raises Forbidden."""
    key = parse_query(request, Key).key
    form = await read_form(request)
    call, session = await call_services(request.app).twilio_sessions.session_of(
        request.match_info["id"],
        key,
        form,
        request.raw_path,
        request.headers.get(SIGNATURE),
        of_child=of_child,
    )
    return call, session, form


def xml(text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(text=text, content_type=_XML, headers=headers)


# --- the stream


class _FromTwilio(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class _Connected(_FromTwilio):
    event: Literal["connected"]


class _MediaFormat(_FromTwilio):
    encoding: Literal["audio/x-mulaw"]
    # Twilio sends some numbers as strings.
    sample_rate: Annotated[int, Field(ge=8000, le=8000)]
    channels: Annotated[int, Field(ge=1, le=1)]


class _Parameters(_FromTwilio):
    token: Annotated[str, StringConstraints(strict=True, max_length=4096)]


class _Stream(_FromTwilio):
    stream_sid: Sid
    account_sid: Sid
    call_sid: Sid
    media_format: _MediaFormat
    custom_parameters: _Parameters


class _Start(_FromTwilio):
    event: Literal["start"]
    start: _Stream


async def stream(request: web.Request) -> web.StreamResponse:
    """Take a Media Stream, as the TwiML of a session tells Twilio to open one.

    Its `start` must carry the session's token; anything wrong closes the socket with 1008.
    """
    call_services(request.app)
    client = await open_socket(request)
    try:
        with request.app[NEWCOMERS].one(request.remote):
            async with asyncio.timeout(request.app[PACE].first_words_s):
                start = await _start_of(client)
                call, session = await _redeemed(request, start)
    except (SocketClosed, TimeoutError, Unauthenticated, Forbidden, ValidationError):
        log.info("a stream was refused")
        await client.close(code=NOT_AUTHORIZED)
        return client
    except AppError as error:
        log.warning("a stream could not be checked", extra={"problem": error.code})
        await client.close(code=TRY_LATER)
        return client
    if call.ended:
        # Twilio goes on with the TwiML's next verb, and is told to hang up.
        await client.close(code=OVER)
        return client
    await _serve(request, client, call, session, start)
    return client


async def _start_of(client: Socket) -> _Stream:
    """Read the stream's first two messages. Raises ValidationError, SocketClosed."""
    for model in (_Connected, _Start):
        kind, data = await read(client)
        message = model.model_validate_json(data if kind is WSMsgType.TEXT else b"")
    assert isinstance(message, _Start)
    return message.start


async def _redeemed(request: web.Request, start: _Stream) -> tuple[Call, Session]:
    services = call_services(request.app)
    token = start.custom_parameters.token
    call, _ = await services.stream_sessions.of_token(token)
    signature = request.headers.get(SIGNATURE)
    await services.twilio_sessions.check_handshake(call, start.account_sid, signature)
    return await services.stream_sessions.redeem(
        token, "twilio", account_sid=start.account_sid, call_sid=start.call_sid
    )


async def _serve(
    request: web.Request, client: Socket, call: Call, session: Session, start: _Stream
) -> None:
    attach = TwilioAttach(
        stream_sid=start.stream_sid,
        resume=session.attached,
        twilio={
            "accountSid": start.account_sid,
            "callSid": start.call_sid,
            "streamSid": start.stream_sid,
        },
    )
    try:
        await pass_frames(request, client, session, attach)
    except Gone:
        # Twilio asks how to go on, and is told how the call has ended.
        await client.close(code=BROKEN)
    except Unavailable as error:
        log.warning("no worker for a stream", extra={"call_id": call.id, "problem": error.code})
        if not session.attached:
            await call_services(request.app).stream_sessions.unanswered(call.id)
        await client.close(code=TRY_LATER)


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/sessions/twilio",
        create,
        "Connect a call of Twilio's to an agent",
        body=CreateTwilioSession,
        answer=TwilioSession,
        errors=(
            *faults.CALLED_AGENT,
            *faults.LIMITS,
            faults.NOT_TWILIO,
            faults.CREDENTIAL_UNREADABLE,
            faults.NOT_CONFIGURED,
            faults.AGENT_UNAVAILABLE,
            faults.STORE,
        ),
        signed_forms=True,
        idempotent=True,
    ),
    Route(
        "GET /v1/sessions/twilio/stream",
        stream,
        "A Media Stream of Twilio's",
        status=101,
        content=WEBSOCKET,
        errors=((400, "BAD_REQUEST"), faults.NOT_CONFIGURED),
        public=True,
    ),
    Route(
        "POST /v1/sessions/twilio/{id}/resume",
        resume,
        "How a call of Twilio's goes on",
        query=Key,
        content=_XML,
        errors=faults.CALLBACK,
        public=True,
    ),
    Route(
        "POST /v1/sessions/twilio/{id}/status",
        status,
        "Twilio's report about a stream",
        query=Key,
        status=204,
        errors=faults.CALLBACK,
        public=True,
    ),
)
