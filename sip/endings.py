"""The endings of a call, and what each tells the room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from livekit.rtc import DisconnectReason

from core.legs import LEAVING


@dataclass(frozen=True, slots=True)
class Ending:
    """The cause, and what the room is told: the leg's last attributes and disconnect reason."""

    cause: str
    reason: DisconnectReason.ValueType = DisconnectReason.CLIENT_INITIATED
    last_word: Mapping[str, str] = field(default_factory=dict)


HANGUP: Final = {"sip.callStatus": "hangup"}
# The endings of answered calls; Verdict has those of unanswered dials. If the room ended the
# call (leg removed, room deleted, identity joined again), ``by_the_room`` gives the reason.
PHONE_HUNG_UP: Final = Ending("phone_hung_up", last_word=HANGUP)
AGENT_HUNG_UP: Final = Ending("end_call_rpc", last_word=HANGUP)
TRANSFERRED: Final = Ending("transferred", last_word=HANGUP)
MAX_DURATION: Final = Ending("max_duration", last_word=HANGUP)
MEDIA_TIMEOUT: Final = Ending("media_timeout", last_word=HANGUP)
MEDIA_FAILED: Final = Ending("media_failed", DisconnectReason.MEDIA_FAILURE)
ASKED_TO_LEAVE: Final = Ending("leave_rpc", last_word={LEAVING: "true"})
# The leg was removed, but the room's disconnect reason did not reach us.
REMOVED: Final = Ending("removed_unheard", DisconnectReason.PARTICIPANT_REMOVED)
NEVER_LET_IN: Final = Ending("never_let_in", DisconnectReason.JOIN_FAILURE)
ROOM_LOST: Final = Ending("room_lost", DisconnectReason.UNKNOWN_REASON)
SHUTDOWN: Final = Ending("shutdown", DisconnectReason.UNKNOWN_REASON)
NOBODY_IN_ROOM: Final = Ending("nobody_in_room", DisconnectReason.UNKNOWN_REASON)
INTERNAL_ERROR: Final = Ending("internal_error", DisconnectReason.UNKNOWN_REASON)


def by_the_room(reason: DisconnectReason.ValueType) -> Ending:
    """Return the ending for a disconnect reason that the room gave."""
    return Ending(f"room:{DisconnectReason.Name(reason).lower()}", reason)
