"""``POST /livekit/webhook``: write LiveKit's reports to the call's timeline.

Webhooks may be lost, late, repeated or out of order. Each is stored once, by its id, and is
interpreted on its own: a phone that left after the answer ended the call. If it left before the
answer, the dial's verdict or the agent explains why. The first webhook of an inbound call creates
its record.
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

# LiveKit ids and names that fit our event columns.
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

# By the reason for which the caller left an answered call.
_ENDINGS: dict[DisconnectReason, tuple[Status, DisconnectionReason]] = {
    DisconnectReason.CLIENT_INITIATED: ("completed", "user_hangup"),
    DisconnectReason.PARTICIPANT_REMOVED: ("completed", "agent_hangup"),
    DisconnectReason.ROOM_DELETED: ("completed", "agent_hangup"),
    DisconnectReason.DUPLICATE_IDENTITY: ("failed", "agent_error"),
}
# The SIP service counts from the answer, we count from the report of it.
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
        # For every room, with or without a call: hold its name, and label it with its tenant.
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
    """Return ``call_id`` if this participant in this room is the call's own."""
    call, participant = await store.call(Scope(None), call_id), event.participant
    if call is None or call.participant_id not in (None, participant.sid):
        return None
    here = (event.room.name, participant.identity) == (call.room_name, call.participant_identity)
    return call.id if here else None


def _when(event: WebhookEvent) -> datetime:
    """Return the event's time: our own, unless late, because LiveKit's has only whole seconds."""
    here = now()
    if not 0 < event.created_at < here.timestamp():
        return here
    told = datetime.fromtimestamp(event.created_at, UTC)
    return told if here - told > _PROMPT else here


async def _ending(
    store: Store, call_id: str, event: WebhookEvent, at: datetime
) -> dict[str, Any] | None:
    """Return the data of ``call.ended``; None: the webhook does not tell how the call ended."""
    call = await store.call(Scope(None), call_id)
    if call is None:
        return None
    answered_at = call.answered_at
    last = event.participant.attributes.get("sip.callStatus")
    if answered_at is None and call.direction == "inbound" and last != "active":
        # A hang-up looks the same before and after the answer; the agent knows which it was.
        if call.ended or await store.events(call_id, types=["agent.dispatched"]):
            return None
        name = _reason_name(event.participant)
        status, reason = left_unanswered(last, name)
        return ended(status, reason, disconnectReason=name)
    if answered_at is None and last not in {"active", "hangup"}:
        return None
    if await is_referring(store, call_id):
        return None  # referred, or hung up meanwhile: the REFER's sender learns which
    # A phone leg times out because its SIP service is lost; a browser because it was left.
    lost = _LEFT if call.direction == "web" else _OTHERWISE
    why = _reason(event.participant)
    if event.participant.attributes.get(LOST):
        why = DisconnectReason.CONNECTION_TIMEOUT  # found by LiveKit itself, but later
    status, reason = _ENDINGS.get(why, lost)
    limit = timedelta(milliseconds=call.max_duration_ms) - _CLOCKS
    if answered_at and at - answered_at >= limit:
        # The SIP service's hang-up at the maximum duration looks like a caller's.
        status, reason = "completed", "max_duration_reached"
    if reason == "user_hangup" and await is_transferred(store, call_id):
        reason = "call_transfer"
    return ended(status, reason, disconnectReason=_reason_name(event.participant))


def _facts(event: WebhookEvent) -> dict[str, Any]:
    """Return the parts of the webhook that concern the call; no metadata, no numbers."""
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
    """Return why the participant left; a leg that was asked to leave counts as removed."""
    if participant.attributes.get(LEAVING):
        return DisconnectReason.PARTICIPANT_REMOVED
    return participant.disconnect_reason


def _reason_name(participant: ParticipantInfo) -> str:
    number = _reason(participant)
    # A newer LiveKit may send reasons unknown here.
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
