"""Why a participant left a room, as an ending's cause."""

from __future__ import annotations

from livekit import rtc

from worker.endings import Cause

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
