"""Maps LiveKit's reason for a participant's leaving to an ending's cause."""

from __future__ import annotations

from livekit import rtc

from worker.endings import Cause

_REASON = rtc.DisconnectReason

# Reasons after which the same participant may be back soon (a resumed signal
# connection, a restarted server), so the call does not end at once.
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
    """Return why the far end's participant left (measured for each cause with livekit-sip 1.10).

    ``status`` is its last ``sip.callStatus``. For SIP, CLIENT_INITIATED alone is ambiguous
    before the answer: a trunk's 5xx looks the same.
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
    # When a phone's leg times out, its SIP service is gone; when a browser does, its user has left.
    return "leg_lost" if sip else "caller_hung_up"


def _left_ringing(reason: rtc.DisconnectReason.ValueType | None, status: str) -> Cause:
    """Return why a caller left before the answer.

    On a CANCEL ``sip.callStatus`` becomes ``hangup``; when ringing times out it stays
    ``ringing`` (livekit-sip and the bridge).
    """
    if reason in _REMOVED:
        return "ring_removed"
    return "caller_gave_up" if status == "hangup" else "rang_out"


def agent_disconnected(
    reason: rtc.DisconnectReason.ValueType | None, *, answered: bool, inbound: bool = False
) -> Cause:
    """Return why the agent itself is no longer in the room."""
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
