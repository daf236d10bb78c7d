"""``POST /livekit/webhook``: what LiveKit saw, onto the call's timeline.

Webhooks may be lost, late, doubled or out of order. Each is kept once (by its
id), and only what it says by itself is concluded: a phone that left after the
answer ended the call; one that left before it is the dial's verdict's to explain,
or its agent's. Of a call that came in, whichever webhook is first makes the record.
"""

from __future__ import annotations

import contextlib
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from livekit.protocol.models import DisconnectReason, ParticipantInfo
from livekit.protocol.webhook import WebhookEvent

from core.errors import BadRequest, Gone, Unauthenticated
from core.events import ended
from core.legs import LEAVING, LOST
from core.models import CallEvent, DisconnectionReason, Status, now
from gateway.api import faults
from gateway.calls.handover import is_referring, is_transferred
from gateway.calls.inbound import left_unanswered
from gateway.calls.livekit import leg_of
from gateway.http.body import read_text
from gateway.http.route import Route
from gateway.keys import STORE, TIMELINE, call_services
from gateway.store.calls import Store
from gateway.store.database import Scope
from sip.far_end import LONGEST_ID, told

log = logging.getLogger(__name__)

# What an event of ours can be called and numbered with.
_ID = re.compile(r"[\x21-\x7e]{1,190}")
_NAME = re.compile(r"[a-z_]{1,56}")
_OF_ROOMS = frozenset(
    {
        "room_started",
        "room_finished",
        "participant_joined",
        "participant_left",
        "participant_connection_aborted",
    }
)

# The caller left a call that had been answered.
_ENDINGS: dict[DisconnectReason, tuple[Status, DisconnectionReason]] = {
    DisconnectReason.CLIENT_INITIATED: ("completed", "user_hangup"),
    DisconnectReason.PARTICIPANT_REMOVED: ("completed", "agent_hangup"),
    DisconnectReason.ROOM_DELETED: ("completed", "agent_hangup"),
    DisconnectReason.DUPLICATE_IDENTITY: ("failed", "agent_error"),
}
# The SIP service began to count at the answer, we when we heard of it.
_CLOCKS = timedelta(seconds=0.5)
_PROMPT = timedelta(seconds=3)
_LEFT: tuple[Status, DisconnectionReason] = ("completed", "user_hangup")
_OTHERWISE: tuple[Status, DisconnectionReason] = ("failed", "agent_error")


async def receive(request: web.Request) -> web.StreamResponse:
    services = call_services(request.app)
    token = request.headers.get("Authorization", "")
    if not token:
        raise Unauthenticated("The webhook is not signed", code="MISSING_AUTH_HEADER")
    body = await read_text(request)
    try:
        event = services.webhook_receiver.receive(body, token.removeprefix("Bearer "))
    except Exception as error:  # the SDK raises bare Exceptions, jwt's and protobuf's alike
        log.warning("webhook refused", extra={"problem": type(error).__name__})
        raise Unauthenticated("The webhook's signature does not match") from None
    if not _ID.fullmatch(event.id) or not _NAME.fullmatch(event.event):
        raise BadRequest("The webhook has no usable id or name")
    if event.event in _OF_ROOMS:
        # Whatever the room and whoever is in it: its name is held, and it says whose it is.
        await services.rooms.saw(event.room, event.participant)
    await _keep(request, event)
    return web.json_response({"status": "ok"})


async def _keep(request: web.Request, event: WebhookEvent) -> None:
    participant = event.participant
    leg = leg_of(participant)
    if leg is None:
        return
    services, store = call_services(request.app), request.app[STORE]
    at = _when(event)
    left = event.event == "participant_left"
    call_id: str | None = None
    match leg.role:
        case "human":
            if left:
                await services.handover.human_left(leg.id, event.room.name, at)
            return
        case "caller":
            with contextlib.suppress(Gone):
                call_id = (await services.inbound.admit(event.room.name, participant, at)).id
        case _:
            call_id = await _call_of(store, leg.id, event)
    if call_id is None:
        return
    events = [
        CallEvent(id=f"lk_{event.id}", type=f"livekit.{event.event}", at=at, data=_facts(event))
    ]
    if left and (data := await _ending(store, call_id, event, at)):
        events.append(CallEvent(id=f"lk_{event.id}_end", type="call.ended", at=at, data=data))
    await request.app[TIMELINE].append(call_id, events, "livekit")
    if left and (call := await store.call(Scope(None), call_id)):
        await services.handover.caller_left(call)


async def _call_of(store: Store, call_id: str, event: WebhookEvent) -> str | None:
    """``call_id``, if it is the call of this participant in this room."""
    call, participant = await store.call(Scope(None), call_id), event.participant
    if call is None or call.participant_id not in (None, participant.sid):
        return None
    here = (event.room.name, participant.identity) == (call.room_name, call.participant_identity)
    return call.id if here else None


def _when(event: WebhookEvent) -> datetime:
    """LiveKit tells whole seconds: our own clock is better, unless the webhook was delayed."""
    here = now()
    if not 0 < event.created_at < here.timestamp():
        return here
    told = datetime.fromtimestamp(event.created_at, UTC)
    return told if here - told > _PROMPT else here


async def _ending(
    store: Store, call_id: str, event: WebhookEvent, at: datetime
) -> dict[str, Any] | None:
    """Data of ``call.ended``; None when the webhook does not show that there was an answer."""
    call = await store.call(Scope(None), call_id)
    if call is None:
        return None
    answered_at = call.answered_at
    last = event.participant.attributes.get("sip.callStatus")
    if answered_at is None and call.direction == "inbound" and last != "active":
        # A phone that was answered hangs up just as one that was not: its agent knows.
        if call.ended or await store.events(call_id, types=["agent.dispatched"]):
            return None
        name = _reason_name(event.participant)
        status, reason = left_unanswered(last, name)
        return ended(status, reason, disconnectReason=name)
    if answered_at is None and last not in {"active", "hangup"}:
        return None
    if await is_referring(store, call_id):
        return None  # sent elsewhere, or hung up meanwhile: who referred the phone is told which
    # A phone leg that times out has lost its SIP service; a browser that does was left.
    lost = _LEFT if call.direction == "web" else _OTHERWISE
    why = _reason(event.participant)
    if event.participant.attributes.get(LOST):
        why = DisconnectReason.CONNECTION_TIMEOUT  # found by LiveKit itself, but later
    status, reason = _ENDINGS.get(why, lost)
    limit = timedelta(milliseconds=call.max_duration_ms) - _CLOCKS
    if answered_at and at - answered_at >= limit:
        # The SIP service hangs up just as a caller does when the time is up.
        status, reason = "completed", "max_duration_reached"
    if reason == "user_hangup" and await is_transferred(store, call_id):
        reason = "call_transfer"
    return ended(status, reason, disconnectReason=_reason_name(event.participant))


def _facts(event: WebhookEvent) -> dict[str, Any]:
    """The webhook reduced to what says something about the call; no metadata, no numbers."""
    participant = event.participant
    facts: dict[str, Any] = {
        "participantId": participant.sid,
        "callStatus": told(participant.attributes.get("sip.callStatus")),
        "sipCallIdFull": told(participant.attributes.get("sip.callIDFull"), LONGEST_ID),
    }
    if event.event == "participant_left":
        facts["disconnectReason"] = _reason_name(participant)
    return {name: value for name, value in facts.items() if value}


def _reason(participant: ParticipantInfo) -> DisconnectReason:
    """Why it left. A leg that was asked to leave was removed, though LiveKit saw it leave."""
    if participant.attributes.get(LEAVING):
        return DisconnectReason.PARTICIPANT_REMOVED
    return participant.disconnect_reason


def _reason_name(participant: ParticipantInfo) -> str:
    number = _reason(participant)
    # A newer LiveKit may know reasons that we do not.
    return DisconnectReason.Name(number) if number in DisconnectReason.values() else str(number)


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /livekit/webhook",
        receive,
        "LiveKit's webhooks, signed by LiveKit",
        public=True,
        errors=((401, "UNAUTHORIZED"), faults.NOT_CONFIGURED),
    ),
)
