"""What the participant of a caller says of the call, what our record makes of it, and what the
call's worker is told of that."""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime

from livekit.protocol.models import ParticipantInfo

from core.far_end import LONGEST_KEY, is_text, told
from core.jobs import CallBrief, VoiceWebhook
from core.models import Agent, Call, CallEvent, DisconnectionReason, PhoneNumber, Status
from gateway.store.calls import NewCall
from gateway.store.credentials import Unreadable
from gateway.store.webhooks import WebhookEndpoint, WebhookStore
from sip.dispatch import NUMBER_ATTRIBUTE
from sip.trunks import read_label

log = logging.getLogger(__name__)


def call_id_of(room_name: str) -> str:
    """The id of the inbound call that this room was made for."""
    return f"call_{hashlib.sha256(room_name.encode()).hexdigest()[:24]}"


def is_caller(participant: ParticipantInfo) -> bool:
    """Whether it is the phone of somebody who called a number of ours."""
    return (
        participant.kind == ParticipantInfo.Kind.SIP and NUMBER_ATTRIBUTE in participant.attributes
    )


def can_be_named(room_name: str, participant: ParticipantInfo) -> bool:
    """Whether a record can name the participant, which a SIP service calls as its caller does."""
    return all(
        is_text(key, LONGEST_KEY) for key in (room_name, participant.identity, participant.sid)
    )


def brief_of(call: Call, agent: Agent, webhook: WebhookEndpoint | None) -> CallBrief:
    """What the call's worker is told. ``webhook``: what answers the caller, if that is one."""
    return CallBrief(
        call_id=call.id,
        phone_number_id=call.phone_number_id,
        direction=call.direction,
        participant_identity=call.participant_identity,
        from_number=call.from_number,
        to_number=call.to_number,
        metadata=call.metadata,
        max_duration_ms=call.max_duration_ms,
        agent=agent,
        webhook=VoiceWebhook.model_validate(webhook.model_dump(), extra="ignore")
        if webhook is not None
        else None,
    )


async def answering_webhook(
    call: Call, agent: Agent, webhooks: WebhookStore
) -> WebhookEndpoint | None:
    """The webhook that answers the caller's turns; None when a model of ours does, or nobody."""
    if agent.config.voice_mode != "webhook":
        return None
    try:
        return await webhooks.of_call(call.id)
    except Unreadable:
        log.error("the webhook's secret cannot be read", extra={"call_id": call.id})
        return None


def left_unanswered(
    call_status: str | None, reason: str | None
) -> tuple[Status, DisconnectionReason]:
    """How a call ended whose caller left before the answer.

    ``call_status`` is the last ``sip.callStatus``: ``hangup`` after a CANCEL, still ``ringing``
    when the SIP service gave up; ``reason`` the name of LiveKit's DisconnectReason.
    """
    if reason in {"PARTICIPANT_REMOVED", "ROOM_DELETED"}:
        return "canceled", "canceled"
    if call_status == "hangup":
        return "canceled", "user_hangup"
    return "failed", "agent_unavailable"


def new_call(
    call_id: str,
    room_name: str,
    caller: ParticipantInfo,
    number: PhoneNumber | None,
    agent: Agent | None,
) -> NewCall:
    """The record of the call as it comes in."""
    attributes = caller.attributes
    return NewCall(
        id=call_id,
        auth_id=number.auth_id if number else owner(caller),
        direction="inbound",
        room_name=room_name,
        participant_identity=caller.identity,
        from_number=told(attributes.get("sip.phoneNumber")),
        to_number=number.phone_number if number else told(attributes.get("sip.trunkPhoneNumber")),
        max_duration_ms=agent.config.max_duration_ms if agent else 0,
        agent=agent,
        phone_number_id=attributes[NUMBER_ATTRIBUTE],
        metadata={},
    )


def owner(caller: ParticipantInfo) -> str | None:
    """Whose the number was when its rule was made: the rule's metadata is the caller's."""
    auth_id = read_label(caller.metadata).get("auth_id")
    return auth_id if isinstance(auth_id, str) else None


def first_events(call_id: str, caller: ParticipantInfo, at: datetime) -> list[CallEvent]:
    """What is known of it by then, whoever tells."""
    ids = {"participantId": caller.sid, "sipCallId": told(caller.attributes.get("sip.callID"))}
    return [
        CallEvent(id=f"{call_id}_queued", type="call.queued", at=at),
        CallEvent(id=f"{call_id}_ringing", type="call.ringing", at=at, data=ids),
    ]
