"""A blind transfer (REFER) through LiveKit's SIP service."""

from __future__ import annotations

from typing import Literal

from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.sip import TransferSIPParticipantRequest

# The transfer may still have happened (livekit/livekit#4555).
_UNKNOWN = frozenset({"canceled", "deadline_exceeded"})

Referred = Literal["completed", "initiated"]


async def refer(sip: LiveKitAPI, transfer: TransferSIPParticipantRequest) -> Referred:
    """Send the REFER, never twice: a second one would ring the other phone again.

    Raises ServerError (SipCallError: the other phone refused), aiohttp.ClientError.
    """
    try:
        await sip.sip.transfer_sip_participant(transfer)
    except TimeoutError:
        return "initiated"
    except ServerError as error:
        if error.code in _UNKNOWN and "sip_status_code" not in error.metadata:
            return "initiated"
        raise
    return "completed"
