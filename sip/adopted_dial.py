"""A dial that another gateway sent, and that has died: watched in its room, never sent again.

The SIP service goes on ringing without whoever asked for it. What is lost is the response to the
dead gateway's request, which alone had the SIP status of a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.models import DisconnectReason
from livekit.protocol.room import RoomParticipantIdentity

from core.models import DisconnectionReason, Status
from sip.dial import ANSWERED, DialOutcome
from sip.leave import participant, send_away

_LOOK_EVERY_S = 0.5
_GONE_LOOKS = 4
"""A request that was under way may still bring the participant."""

_REASONS: dict[str, tuple[Status, DisconnectionReason]] = {
    "USER_REJECTED": ("busy", "dial_busy"),
    "USER_UNAVAILABLE": ("no-answer", "dial_no_answer"),
    "PARTICIPANT_REMOVED": ("canceled", "canceled"),
    "ROOM_DELETED": ("canceled", "canceled"),
}
assert _REASONS.keys() <= set(DisconnectReason.keys())


class AdoptedDial:
    """The part of sip.dial.Dial that following needs."""

    def __init__(self, rooms: LiveKitAPI, room_name: str, identity: str) -> None:
        self._rooms = rooms
        self._whom = RoomParticipantIdentity(room=room_name, identity=identity)

    async def verdict(self) -> DialOutcome:
        """Wait until the phone is answered or gone; the SIP service limits the ringing.

        A phone that is gone has the verdict ``dial_failed``: see ``why_left``.
        """
        missing = 0
        while missing < _GONE_LOOKS:
            try:
                status = await self._status()
            except (ServerError, aiohttp.ClientError, TimeoutError):
                status = ""  # not known
            if status == "active":
                return ANSWERED
            missing = missing + 1 if status is None else 0
            await asyncio.sleep(_LOOK_EVERY_S)
        return DialOutcome(status="failed", reason="dial_failed")

    async def call_status(self) -> str | None:
        """Return the participant's current ``sip.callStatus``; None if it is not in the room."""
        try:
            return await self._status()
        except (ServerError, aiohttp.ClientError, TimeoutError):
            return None

    async def cancel(self) -> None:
        """Stop ringing, or hang up."""
        with contextlib.suppress(ServerError, aiohttp.ClientError, TimeoutError):
            await send_away(self._rooms, self._whom)

    async def aclose(self) -> None:
        """Do nothing: a ringing phone goes on ringing."""

    async def _status(self) -> str | None:
        found = await participant(self._rooms, self._whom)
        return None if found is None else found.attributes.get("sip.callStatus", "")


def why_left(disconnect_reason: str | None) -> DialOutcome:
    """Return the verdict on an unanswered phone by the name of LiveKit's DisconnectReason."""
    status, reason = _REASONS.get(disconnect_reason or "", ("failed", "dial_failed"))
    return DialOutcome(status=status, reason=reason)
