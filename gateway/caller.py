"""What the participant of a caller says of the call, and what our record makes of it. Pure."""

from __future__ import annotations

import hashlib
from datetime import datetime

from livekit.protocol.models import ParticipantInfo

from core.models import (
    Agent,
    Call,
    CallBrief,
    CallEvent,
    DisconnectionReason,
    PhoneNumber,
    Status,
)
from core.store import NewCall
from sip.dispatch import NUMBER_ATTRIBUTE
from sip.trunks import read_label


def call_id_of(room_name: str) -> str:
    """The id of the inbound call that this room was made for."""
    return f"call_{hashlib.sha256(room_name.encode()).hexdigest()[:24]}"


def is_caller(participant: ParticipantInfo) -> bool:
    """Whether it is the phone of somebody who called a number of ours."""
    return (
        participant.kind == ParticipantInfo.Kind.SIP and NUMBER_ATTRIBUTE in participant.attributes
    )


def brief_of(call: Call, agent: Agent, max_duration_ms: int) -> CallBrief:
    """What the call's worker is told."""
    return CallBrief(
        call_id=call.id,
        direction=call.direction,
        participant_identity=call.participant_identity,
        from_number=call.from_number,
        to_number=call.to_number,
        metadata=call.metadata,
        max_duration_ms=max_duration_ms,
        agent=agent,
    )


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
        from_number=attributes.get("sip.phoneNumber"),
        to_number=number.phone_number if number else attributes.get("sip.trunkPhoneNumber"),
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
    ids = {"participantId": caller.sid, "sipCallId": caller.attributes.get("sip.callID")}
    return [
        CallEvent(id=f"{call_id}_queued", type="call.queued", at=at),
        CallEvent(id=f"{call_id}_ringing", type="call.ringing", at=at, data=ids),
    ]
