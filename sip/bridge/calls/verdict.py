"""The verdict on a failed dial: the API's error and the participant's disconnect reason.

They match livekit-sip's, so that the error, the disconnect reason and the webhook do not tell
which of the two served the call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from livekit.rtc import DisconnectReason

from sip.bridge.twirp import TwirpError, sip_error

_STATUS: Final = re.compile(r"(\d{3}) ?(.*)", re.DOTALL)
# The stack ends its error texts with the errno: "Connection timed out [110]".
_ERRNO: Final = re.compile(r"\[(\d+)\]\s*$")

# The stack's errors for a name without an address (EDESTADDRREQ, ENOENT; EINVAL: none at all).
_UNRESOLVED: Final = frozenset({2, 22, 89})
# ETIMEDOUT: no response to the INVITE (RFC 3261 timer B, 32 s).
_TIMED_OUT: Final = 110


@dataclass(frozen=True, slots=True)
class Verdict:
    """A dial that was not answered.

    LiveKit reports the ``reason`` UNKNOWN_REASON as CLIENT_INITIATED.
    """

    error: TwirpError
    reason: DisconnectReason.ValueType
    sip_status: int | None = None


def is_status_line(text: str) -> bool:
    """Return True if the stack's closing text is the far end's status line."""
    return _STATUS.fullmatch(text) is not None


def refused(text: str) -> Verdict:
    """Map a status line (``486 Busy Here``) or the stack's error text to a verdict."""
    match = _STATUS.fullmatch(text)
    if match is not None:
        return _by_status(int(match[1]), match[2].strip())
    number = _errno(text)
    if number in _UNRESOLVED:
        return unresolved()
    if number == _TIMED_OUT:
        error = TwirpError("canceled", "transaction failed to complete (0 intermediate responses)")
        return Verdict(error, DisconnectReason.USER_UNAVAILABLE)
    # An INVITE was sent, so use a code that clients do not retry: the phone would ring twice.
    error = TwirpError("failed_precondition", f"INVITE failed: {text or 'no reason given'}")
    return Verdict(error, DisconnectReason.UNKNOWN_REASON)


def unanswered() -> Verdict:
    """Nobody picked up within the ringing timeout."""
    error = TwirpError("canceled", "sip request timed out")
    return Verdict(error, DisconnectReason.USER_UNAVAILABLE)


def canceled(message: str) -> Verdict:
    """Our side gave up the dial (leg removed, room deleted, shutdown)."""
    return Verdict(TwirpError("canceled", message), DisconnectReason.UNKNOWN_REASON)


def unresolved() -> Verdict:
    """The trunk's host has no address."""
    error = TwirpError("invalid_argument", "the trunk's host could not be resolved")
    return Verdict(error, DisconnectReason.UNKNOWN_REASON)


def not_allowed() -> Verdict:
    """A tenant's trunk has an address that is not allowed. Nothing was sent."""
    error = TwirpError("permission_denied", "the trunk's host is not allowed")
    return Verdict(error, DisconnectReason.UNKNOWN_REASON)


def exhausted() -> Verdict:
    """This process accepts no further identity to dial from. Nothing was sent."""
    error = TwirpError("resource_exhausted", "too many different identities were dialled from")
    return Verdict(error, DisconnectReason.UNKNOWN_REASON)


def _not_authenticated() -> Verdict:
    error = TwirpError("failed_precondition", "the trunk's credentials are missing or were refused")
    return Verdict(error, DisconnectReason.USER_REJECTED)


def _by_status(status: int, phrase: str) -> Verdict:
    if status in {401, 407}:
        return _not_authenticated()
    return Verdict(sip_error(status, phrase), _reason(status), status)


def _reason(status: int) -> DisconnectReason.ValueType:
    if status in {403, 486, 488} or 600 <= status < 700:
        return DisconnectReason.USER_REJECTED
    if 400 <= status < 500 and status not in {401, 407}:
        # livekit-sip closes other 4xx as rejected, too; only these three are "unavailable".
        unavailable = status in {404, 408, 480}
        return DisconnectReason.USER_UNAVAILABLE if unavailable else DisconnectReason.USER_REJECTED
    return DisconnectReason.UNKNOWN_REASON


def _errno(text: str) -> int | None:
    match = _ERRNO.search(text)
    return int(match[1]) if match else None
