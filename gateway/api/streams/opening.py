"""The beginning of a client's socket: who the client is, and which session it wants."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from aiohttp import WSMsgType, hdrs, web

from core.errors import BadRequest, Conflict, Gone, Unauthenticated, Unavailable
from core.streams.messages import SocketAttach
from gateway.api.streams.first_message import Auth, Resume, SessionUpdate, first_message
from gateway.calls.variables import Variables, fill
from gateway.http.host_names import Names
from gateway.http.origins import check_origin
from gateway.http.pace import PACE
from gateway.http.sockets import Socket, read
from gateway.keys import (
    AGENTS,
    AUTHENTICATOR,
    NEWCOMERS,
    SESSIONS,
    SETTINGS,
    STORE,
    WEBHOOKS,
    call_services,
)
from gateway.lookup.agents import check_takes_calls
from gateway.store.call_status import Call
from gateway.store.database import Principal, Scope
from gateway.store.streams.sessions import Session

PROTOCOL = "switchroom"
_TOKEN = "token."
# A resume token is valid while there is a session: longer than any call lasts.
_RESUMABLE = timedelta(hours=25)

Frame: TypeAlias = tuple[WSMsgType, bytes]
_Said: TypeAlias = Auth | SessionUpdate | Resume | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The session that a client wants, and how to attach its socket to it."""

    session: Session
    attach: SocketAttach
    first: Frame | None
    """What the client has said that is for the worker."""


class Opening:
    """One socket's beginning; ``of`` reads the handshake, ``wanted`` the first messages."""

    def __init__(
        self,
        request: web.Request,
        principal: Principal | None,
        token: str | None,
    ) -> None:
        """With neither principal nor token, the first message must bring a token."""
        self._app = app = request.app
        self._agent_id = request.match_info["id"]
        self._address = request.remote
        self._principal = principal
        self._token = token
        """A session's, not the API's."""
        self._call: Call | None = None
        self._session: Session | None = None
        """As it was before this socket; None until then."""
        self._sessions = call_services(app).stream_sessions

    @classmethod
    async def of(cls, request: web.Request) -> Opening:
        """Raises BadRequest, Unauthenticated, Forbidden, ServerFault, Unavailable (JWKS)."""
        settings = request.app[SETTINGS]
        check_origin(request, settings)
        token = _offered_token(request)
        headers = request.headers.getall(hdrs.AUTHORIZATION, [])
        principal = None
        if headers:
            principal = await request.app[AUTHENTICATOR].authenticate(headers)
        elif token is None and not settings.auth_required:
            Names(settings).check(request)
            principal = Principal(None)
        return cls(request, principal, token)

    async def wanted(self, socket: Socket) -> Wanted:
        """Read the first messages. Raises SocketClosed, and AppError for the client.

        Whatever fails from here on until the socket is attached: call ``failed``.
        """
        pace = self._app[PACE]
        if self._token is not None:
            await self._redeem(self._token)
        if self._principal is None and self._token is None:
            with self._app[NEWCOMERS].one(self._address):
                said, first = await _hear(socket, pace.first_words_s)
                if not isinstance(said, Auth):
                    raise Unauthenticated("The first message must be: auth")
                await self._prove(said.token)
            said, first = await _hear(socket, pace.first_message_s)
        else:
            said, first = await _hear(socket, pace.first_message_s)
            if isinstance(said, Auth) and self._token is None:
                await self._prove(said.token)
                said, first = await _hear(socket, pace.first_message_s)
        if isinstance(said, Resume):
            return await self._resume(said, first)
        return await self._begin(
            said if isinstance(said, SessionUpdate) else SessionUpdate(), first
        )

    async def failed(self, error: Exception) -> None:
        """End a call that did not begin; let one that is to be resumed be tried again."""
        call, session = self._call, self._session
        if call is None:
            return
        if session is None or not session.attached:
            if isinstance(error, Unavailable):
                await self._sessions.unanswered(call.id)
            else:
                await self._sessions.nobody_came(call.id)
        elif isinstance(error, Unavailable) and self._token is not None:
            await self._sessions.give_back(session, self._token)

    async def _prove(self, token: str) -> None:
        """Accept a session's token or the API's. Raises Unauthenticated."""
        try:
            await self._redeem(token)
        except Unauthenticated:
            self._principal = await self._app[AUTHENTICATOR].verify(token)
        else:
            self._token = token

    async def _redeem(self, token: str) -> None:
        self._call, self._session = await self._sessions.redeem(token, "socket")
        if self._call.agent_id != self._agent_id:
            raise Unauthenticated("The token is for another agent")

    async def _begin(self, update: SessionUpdate, first: Frame | None) -> Wanted:
        if self._session is not None and self._session.attached:
            raise Unauthenticated("This token is for the message: resume")
        variables = update.variables or {}
        if self._call is None:
            call = self._call = await self._open(variables, record=bool(update.wants_recording))
        else:
            call = self._call
            await self._tailor(call, variables, record=update.wants_recording)
        attach = await self._attach(call, input=update.input.format, output=update.output.format)
        return Wanted(Session(call_id=call.id, kind="socket"), attach, first)

    async def _open(self, variables: Variables, *, record: bool) -> Call:
        """Create the call of a client with an API token."""
        principal = self._principal or Principal(None)
        agent = await self._app[AGENTS].require(Scope(principal.auth_id), self._agent_id)
        await check_takes_calls(agent, principal.auth_id, self._app[WEBHOOKS], record=record)
        call, _ = await self._sessions.open(
            principal,
            fill(agent, variables),
            kind="socket",
            direction="web",
            metadata={},
            record=record,
        )
        return call

    async def _tailor(self, call: Call, variables: Variables, *, record: bool | None) -> None:
        """Fill in the variables that were not set when the token was made.

        Who has only that token may forbid a recording, and not ask for one.
        """
        if call.ended:
            raise Gone("The call has ended")
        if record and not call.record:
            raise Conflict("The session was created without record", code="RECORDING_NOT_ENABLED")
        forbidden = call.record and record is False
        found = await self._app[STORE].call_and_agent(call.id) if variables or forbidden else None
        if found is None or found[1] is None:
            return
        tailored = fill(found[1], variables)
        if not await self._app[SESSIONS].tailor(
            call.id, tailored, record=call.record and not forbidden
        ):
            raise Gone("The call has ended")

    async def _resume(self, resume: Resume, first: Frame | None) -> Wanted:
        if self._token is None:
            await self._find(resume.session_id)
        call, session = self._call, self._session
        if call is None or session is None or call.ended or not session.attached:
            raise Gone("The session is gone")
        if call.id != resume.session_id:
            raise Unauthenticated("The token is for another session")
        attach = await self._attach(call, resume=True, last_seq=resume.last_seq)
        return Wanted(session, attach, first)

    async def _find(self, session_id: str) -> None:
        """Look up a session of the principal's."""
        scope = Scope(self._principal.auth_id if self._principal else None)
        call = await self._app[STORE].call(scope, session_id)
        session = await self._app[SESSIONS].find(session_id) if call is not None else None
        if call is None or session is None:
            return
        if session.kind == "socket" and call.agent_id == self._agent_id:
            self._call, self._session = call, session

    async def _attach(self, call: Call, **how: Any) -> SocketAttach:
        token = await self._sessions.renew(call, "socket", ttl=_RESUMABLE)
        return SocketAttach(resume_token=token.text, **how)


def _offered_token(request: web.Request) -> str | None:
    """Return the token in Sec-WebSocket-Protocol, the only header that a page can set.

    Raises BadRequest for other subprotocols: aiohttp would log them, and so a token.
    """
    offered = [
        protocol.strip()
        for header in request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
        for protocol in header.split(",")
    ]
    tokens = [protocol.removeprefix(_TOKEN) for protocol in offered if protocol.startswith(_TOKEN)]
    if (offered and PROTOCOL not in offered) or len(tokens) > 1:
        raise BadRequest(f"The subprotocols are: {PROTOCOL}, and one {_TOKEN}…")
    return tokens[0] if tokens else None


async def _hear(socket: Socket, within_s: float) -> tuple[_Said, Frame | None]:
    """Return the next message, or else the frame that is none of them; twice None: none came."""
    try:
        async with asyncio.timeout(within_s):
            frame = await read(socket)
    except TimeoutError:
        return None, None
    said = first_message(*frame)
    return said, frame if said is None else None
