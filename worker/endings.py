"""Every way a call ends, in one table.

The worker says how a call ended only when it knows: what a dial that was never
answered means is the gateway's verdict, and another agent's call is not ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """What a cause means for the record and for the caller."""

    status: Status | None = None
    """None: not ours to say, no ``call.ended`` is posted."""
    reason: DisconnectionReason | None = None
    hang_up: bool = False
    """The far end is still there: it is sent away."""
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
