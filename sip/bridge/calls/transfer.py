"""Blind transfers: checks the target, and maps a failed REFER to an API error. Sans-I/O."""

from __future__ import annotations

import re
from typing import Final

import baresip

from sip.bridge.twirp import TwirpError, sip_error
from sip.bridge.validation import invalid

_TEL: Final = re.compile(r"tel:\+?[0-9*#()./-]{1,64}(?:;[A-Za-z0-9.=+_-]{1,128})*")
_SIP: Final = re.compile(
    r"sips?:(?:[A-Za-z0-9._!~*'()&=+$,/%-]{1,128}@)?"
    r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]{1,253})(?::\d{1,5})?(?:;[A-Za-z0-9.=+_-]{1,128})*"
)


def transfer_target(value: str) -> str:
    """Return the URI for Refer-To. Raises TwirpError ``invalid_argument``."""
    if not value:
        raise invalid("missing transfer to")
    target = value[1:-1] if value.startswith("<") and value.endswith(">") else value
    if not _TEL.fullmatch(target) and not _SIP.fullmatch(target):
        raise invalid("transfer_to must be a valid SIP(s) or TEL URI (sip:, sips: or tel:)")
    return target


def transfer_error(error: Exception) -> TwirpError:
    """Return the API error for a failed REFER; livekit-api makes a SipCallError of it."""
    status = error.status if isinstance(error, baresip.TransferFailed) else None
    if status is not None and isinstance(error, baresip.TransferFailed):
        return sip_error(status, error.reason, what="call transfer failed")
    if "no transfer outcome" in str(error):
        return TwirpError("deadline_exceeded", "request timed out")
    if "already in progress" in str(error):
        return TwirpError("invalid_argument", "call already being transferred elsewhere")
    return TwirpError("failed_precondition", f"call transfer failed: {error}")
