"""``POST /v1/calls/{id}/end``: hang up."""

from __future__ import annotations

import logging

from aiohttp import web
from pydantic import BaseModel

from core.errors import Conflict
from core.events import ended
from core.models import CallEvent
from gateway.api import faults
from gateway.api.calls import detail, find
from gateway.calls.livekit import send_away
from gateway.calls.views import CallDetail
from gateway.http.idempotency import once
from gateway.http.principal import PRINCIPAL
from gateway.http.route import Route
from gateway.keys import STORE, TIMELINE, call_services
from gateway.store.call_status import Call
from gateway.store.database import Scope
from sip.twirp import livekit_errors

log = logging.getLogger(__name__)


class Nothing(BaseModel):
    """A request without a body."""


async def end(request: web.Request) -> web.StreamResponse:
    """Hang up, or stop ringing, and return the ended call. A request body is ignored."""

    async def effect() -> dict[str, object]:
        call = await find(request)
        if call.ended:
            raise Conflict("The call has already ended", code="CALL_ENDED")
        over = await hang_up(request, call)
        return (await detail(request, over)).wire()

    return await once(request, request.app[STORE], request[PRINCIPAL], Nothing(), effect)


async def hang_up(request: web.Request, call: Call) -> Call:
    """Hang up the far end, then end the record; return the call as it is afterwards.

    Raises ServerFault, Unavailable (LiveKit, a stream worker, the database). The record is then
    still open, and the request may be repeated.
    """
    services, store = call_services(request.app), request.app[STORE]
    if call.type == "stream":
        await services.stream_sessions.end(call.id)
        await _end(request, call)
        return await store.call(Scope(None), call.id) or call
    livekit = services.livekit
    with livekit_errors():
        gone = await send_away(livekit, call.room_name, call.participant_identity)
    await _end(request, call)
    if not gone:
        # The leg may have joined just now; if still dialling, the event cancels the dial.
        with livekit_errors():
            await send_away(livekit, call.room_name, call.participant_identity)
    await services.handover.caller_left(call)
    return await store.call(Scope(None), call.id) or call


async def _end(request: web.Request, call: Call) -> None:
    # Hanging up counts as the agent's side; before the answer it cancels the call.
    answered = call.status == "in-progress"
    data = ended("completed", "agent_hangup") if answered else ended("canceled", "canceled")
    over = CallEvent(type="call.ended", data={**data, "by": "api"})
    await request.app[TIMELINE].append(call.id, [over], "gateway")


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/calls/{id}/end",
        end,
        "Hang up",
        answer=CallDetail,
        errors=(
            faults.NO_CALL,
            (409, "CALL_ENDED"),
            *faults.LIVEKIT,
            faults.AGENT_UNAVAILABLE,
            faults.STORE,
        ),
        idempotent=True,
    ),
)
