"""Every way a call ends, in one table, and how a leaving participant is read.

The worker says how a call ended only when it knows: what a dial that was never
answered means is the gateway's verdict, and another agent's call is not ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from livekit import rtc

from core.models import DisconnectionReason, Status

Cause = Literal[
    "caller_hung_up",
    "agent_hung_up",
    "voicemail_reached",
    "ivr_reached",
    "referred",
    "handed_over",
    "transfer_ended",
    "removed",
    "max_duration",
    "silence",
    "leg_lost",
    "leg_replaced",
    "not_answered",
    "caller_gave_up",
    "ring_removed",
    "rang_out",
    "nobody_came",
    "provider_failed",
    "no_brief",
    "no_call",
    "over_already",
    "media_lost",
    "agent_removed",
    "agent_replaced",
    "worker_stopped",
    "worker_failed",
]


@dataclass(frozen=True, slots=True)
class Ending:
    """What a cause means for the record, for the caller and for the room."""

    status: Status | None = None
    """None: not ours to say, no ``call.ended`` is posted."""
    reason: DisconnectionReason | None = None
    hang_up: bool = False
    """The far end is still there: it is removed from the room."""
    apologise: bool = False


ENDINGS: dict[Cause, Ending] = {
    # The far end hung up: a BYE, or a closed browser tab.
    "caller_hung_up": Ending("completed", "user_hangup"),
    # end_call, or a hang-up that the agent's side asked for.
    "agent_hung_up": Ending("completed", "agent_hangup", hang_up=True),
    # A machine answered, and the agent's policy ended it: with its message left, or at once.
    "voicemail_reached": Ending("completed", "voicemail_reached", hang_up=True),
    "ivr_reached": Ending("completed", "ivr_reached", hang_up=True),
    # A cold transfer: the gateway, which referred the phone, has said so. A warm one: caller and
    # human go on without us, and the gateway sees to the end; unless one of them was quicker.
    "referred": Ending(),
    "handed_over": Ending(),
    "transfer_ended": Ending("completed", "call_transfer", hang_up=True),
    # The far end was removed, or the room deleted, through the API: our side ended it.
    "removed": Ending("completed", "agent_hangup"),
    "max_duration": Ending("completed", "max_duration_reached", hang_up=True),
    "silence": Ending("completed", "inactivity", hang_up=True),
    # The phone leg vanished without a goodbye (its SIP service died, its media failed).
    "leg_lost": Ending("failed", "agent_error"),
    "leg_replaced": Ending("failed", "agent_error"),
    # It left before it was answered: the dial knows why.
    "not_answered": Ending(),
    # A caller who hung up before we answered; one whom the API took out; one to whom we were
    # silent until the SIP service gave up ringing.
    "caller_gave_up": Ending("canceled", "user_hangup"),
    "ring_removed": Ending("canceled", "canceled"),
    "rang_out": Ending("failed", "agent_unavailable", hang_up=True),
    "nobody_came": Ending(),
    "provider_failed": Ending("failed", "agent_error", hang_up=True, apologise=True),
    "no_brief": Ending("failed", "agent_error", hang_up=True),
    # Refused after the agent had been sent, and never dialled: a phone in the room is another's.
    "no_call": Ending(),
    # It ended while this agent was on its way.
    "over_already": Ending(),
    # No way back into the room, so nobody can be heard or hung up on.
    "media_lost": Ending("failed", "agent_error"),
    # Somebody took the agent out, or a new one took its place: the call goes on without us.
    "agent_removed": Ending(),
    "agent_replaced": Ending(),
    "worker_stopped": Ending("failed", "agent_error", hang_up=True),
    "worker_failed": Ending("failed", "agent_error", hang_up=True, apologise=True),
}

_REASON = rtc.DisconnectReason

# Reasons after which the same participant may be back at once (a resumed signal
# connection, a restarted server): wait before believing them.
MAY_RETURN = frozenset(
    {
        _REASON.UNKNOWN_REASON,
        _REASON.SERVER_SHUTDOWN,
        _REASON.STATE_MISMATCH,
        _REASON.MIGRATION,
        _REASON.SIGNAL_CLOSE,
    }
)

_REMOVED = frozenset({_REASON.PARTICIPANT_REMOVED, _REASON.ROOM_DELETED, _REASON.ROOM_CLOSED})


def far_end_left(
    reason: rtc.DisconnectReason.ValueType | None,
    *,
    sip: bool,
    status: str,
    answered: bool,
    inbound: bool = False,
) -> Cause:
    """Why the far end's participant left (measured with livekit-sip 1.10, cause by cause).

    ``status`` is its last ``sip.callStatus``. CLIENT_INITIATED alone says little for SIP:
    a trunk's 5xx looks the same, but only before the answer.
    """
    if not answered:
        return _left_ringing(reason, status) if inbound else "not_answered"
    if sip and status == "hangup":
        return "caller_hung_up"
    match reason:
        case _REASON.CLIENT_INITIATED | _REASON.USER_REJECTED | _REASON.USER_UNAVAILABLE:
            return "caller_hung_up"
        case _ if reason in _REMOVED:
            return "removed"
        case _REASON.DUPLICATE_IDENTITY:
            return "leg_replaced"
    # A phone leg that times out has lost its SIP service; a browser that does was left.
    return "leg_lost" if sip else "caller_hung_up"


def _left_ringing(reason: rtc.DisconnectReason.ValueType | None, status: str) -> Cause:
    """Why a caller left before the answer.

    On a CANCEL the ``sip.callStatus`` becomes ``hangup``; when the ringing time is over it
    stays ``ringing`` (livekit-sip, and the bridge).
    """
    if reason in _REMOVED:
        return "ring_removed"
    return "caller_gave_up" if status == "hangup" else "rang_out"


def agent_disconnected(
    reason: rtc.DisconnectReason.ValueType | None, *, answered: bool, inbound: bool = False
) -> Cause:
    """Why the agent itself is no longer in the room."""
    match reason:
        case _REASON.DUPLICATE_IDENTITY:
            return "agent_replaced"
        case _REASON.PARTICIPANT_REMOVED:
            return "agent_removed"
        case _REASON.ROOM_DELETED | _REASON.ROOM_CLOSED:
            if answered:
                return "removed"
            return "ring_removed" if inbound else "not_answered"
    return "media_lost"
