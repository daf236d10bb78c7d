"""How a call ends, and what its room is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from livekit.rtc import DisconnectReason

from core.legs import LEAVING


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a call is over, and what the room is told: the last attributes, and the reason."""

    cause: str
    reason: DisconnectReason.ValueType = DisconnectReason.CLIENT_INITIATED
    last_word: Mapping[str, str] = field(default_factory=dict)


HANGUP: Final = {"sip.callStatus": "hangup"}
# Every ending of a call that was answered; Verdict has those of a dial that was not.
# What the room itself ended (removal, deletion, the same identity again) has the room's reason.
PHONE_HUNG_UP: Final = Ending("phone_hung_up", last_word=HANGUP)
AGENT_HUNG_UP: Final = Ending("end_call_rpc", last_word=HANGUP)
TRANSFERRED: Final = Ending("transferred", last_word=HANGUP)
MAX_DURATION: Final = Ending("max_duration", last_word=HANGUP)
MEDIA_TIMEOUT: Final = Ending("media_timeout", last_word=HANGUP)
MEDIA_FAILED: Final = Ending("media_failed", DisconnectReason.MEDIA_FAILURE)
ASKED_TO_LEAVE: Final = Ending("leave_rpc", last_word={LEAVING: "true"})
# The room's word for it did not reach us.
REMOVED: Final = Ending("removed_unheard", DisconnectReason.PARTICIPANT_REMOVED)
NEVER_LET_IN: Final = Ending("never_let_in", DisconnectReason.JOIN_FAILURE)
ROOM_LOST: Final = Ending("room_lost", DisconnectReason.UNKNOWN_REASON)
SHUTDOWN: Final = Ending("shutdown", DisconnectReason.UNKNOWN_REASON)
NOBODY_IN_ROOM: Final = Ending("nobody_in_room", DisconnectReason.UNKNOWN_REASON)
INTERNAL_ERROR: Final = Ending("internal_error", DisconnectReason.UNKNOWN_REASON)


def by_the_room(reason: DisconnectReason.ValueType) -> Ending:
    """The room ended it, and says why."""
    return Ending(f"room:{DisconnectReason.Name(reason).lower()}", reason)
