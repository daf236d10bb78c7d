"""Who may open a call's recording: a request's principal, or the holder of a link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from core.errors import NotFound, Unauthenticated
from gateway.calls.views import Recorded
from gateway.http.principal import PRINCIPAL, scope_of
from gateway.keys import LINKS, LISTENERS, RECORDINGS, STORE
from gateway.recordings.listeners import Via, What
from gateway.store.call_status import Call
from gateway.store.database import Scope
from gateway.store.recordings.recordings import StoredRecording

_OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Opened:
    """A call and its recording, opened by ``by``."""

    call: Call
    recording: StoredRecording
    by: str
    via: Via

    async def note(self, request: web.Request, what: What) -> None:
        """Put the access on the timeline. Raises Unavailable."""
        await request.app[LISTENERS].note(self.call.id, self.by, self.via, what)


async def call_of(request: web.Request) -> Call:
    """Return the call named in the path. Raises NotFound, also for another tenant's call."""
    return await _call(request, scope_of(request))


async def opened(request: web.Request) -> Opened:
    """Return what the request's principal opens. Raises NotFound, TooEarly, Gone."""
    call = await call_of(request)
    recording = await request.app[RECORDINGS].require(call)
    return Opened(call, recording, request[PRINCIPAL].auth_id or _OPERATOR, "api")


async def opened_by_link(request: web.Request, token: str) -> Opened:
    """Return what the link opens. Raises Unauthenticated, Gone."""
    links = request.app[LINKS]
    holder = links.holder(token, request.match_info["id"]) if links is not None else None
    if holder is None:
        # The same for every reason.
        raise Unauthenticated("The link is not valid, or has expired")
    call = await _call(request, Scope(None))
    recording = await request.app[RECORDINGS].require(call)
    by = _OPERATOR if holder == "o" else call.auth_id or _OPERATOR
    return Opened(call, recording, by, "link")


async def recordings_of(request: web.Request, call_ids: Sequence[str]) -> dict[str, Recorded]:
    """Return the recordings of those calls that have one, with links for the principal."""
    links, operator = request.app[LINKS], request[PRINCIPAL].auth_id is None
    return {
        call_id: Recorded(True, links.url(call_id, operator=operator) if links else None)
        for call_id in await request.app[RECORDINGS].rows.available(call_ids)
    }


async def _call(request: web.Request, scope: Scope) -> Call:
    call = await request.app[STORE].call(scope, request.match_info["id"])
    if call is None:
        raise NotFound("Call not found", code="CALL_NOT_FOUND")
    return call
