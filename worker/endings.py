"""Every way a call ends, in one table.

The worker reports how a call ended only when it knows. The verdict on a dial that was
never answered comes from the gateway, and a call that another agent serves is not reported.
An agent that stops or fails reports that it is lost. Only if no other one takes over, does the
call end as the table says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.models import DisconnectionReason, Status
from core.recovery import Why

Cause = Literal[
    "caller_hung_up",
    "agent_hung_up",
    "voicemail_reached",
    "ivr_reached",
    "consent_refused",
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
    "agents_lost",
]


@dataclass(frozen=True, slots=True)
class Ending:
    """The effect of a cause on the record and on the caller."""

    status: Status | None = None
    """None: another component reports the end; no ``call.ended`` is posted."""
    reason: DisconnectionReason | None = None
    hang_up: bool = False
    """The far end may still be connected; hang up on it."""
    apologise: bool = False
    lost: Why | None = None
    """The agent is lost, not the call: if another agent takes over, this one only leaves."""


REPLACED = Ending()
"""Another agent has taken over, or will: no word and no hang-up."""

ENDINGS: dict[Cause, Ending] = {
    # The far end hung up: a BYE, or a closed browser tab.
    "caller_hung_up": Ending("completed", "user_hangup"),
    # The tool end_call, or a hang-up that the tenant's webhook asked for.
    "agent_hung_up": Ending("completed", "agent_hangup", hang_up=True),
    # A machine answered, and the agent's policy ended the call, after leaving a message or at once.
    "voicemail_reached": Ending("completed", "voicemail_reached", hang_up=True),
    "ivr_reached": Ending("completed", "ivr_reached", hang_up=True),
    # The caller did not consent, and the agent ends such calls (consent.onRefused).
    "consent_refused": Ending("completed", "agent_hangup", hang_up=True),
    # Cold transfer: the gateway, which referred the phone, has written it. Warm transfer: caller
    # and human go on without the agent, and the gateway follows the call to its end;
    # transfer_ended if one of them hung up before the agent left.
    "referred": Ending(),
    "handed_over": Ending(),
    "transfer_ended": Ending("completed", "call_transfer", hang_up=True),
    # The API removed the far end or deleted the room: the agent's side ended the call.
    "removed": Ending("completed", "agent_hangup"),
    "max_duration": Ending("completed", "max_duration_reached", hang_up=True),
    "silence": Ending("completed", "inactivity", hang_up=True),
    # The phone's leg vanished without a BYE (its SIP service died, its media failed).
    "leg_lost": Ending("failed", "agent_error"),
    "leg_replaced": Ending("failed", "agent_error"),
    # The callee's leg left before the answer: the dial's verdict has the reason.
    "not_answered": Ending(),
    # Before the answer: the caller hung up; the API removed the caller; the SIP service stopped
    # ringing because no agent answered.
    "caller_gave_up": Ending("canceled", "user_hangup"),
    "ring_removed": Ending("canceled", "canceled"),
    "rang_out": Ending("failed", "agent_unavailable", hang_up=True),
    "nobody_came": Ending(),
    "provider_failed": Ending("failed", "agent_error", hang_up=True, apologise=True),
    "no_brief": Ending("failed", "agent_error", hang_up=True),
    # The request was refused after the agent's dispatch, and nothing was dialled. A phone in the
    # room belongs to another call.
    "no_call": Ending(),
    # The call ended while the agent was joining.
    "over_already": Ending(),
    # The worker cannot rejoin the room, so it can neither hear nor hang up.
    "media_lost": Ending("failed", "agent_error"),
    # The agent was removed, or a new one took its place: the call goes on without this one.
    "agent_removed": Ending(),
    "agent_replaced": Ending(),
    # Its main process died, or the drain ran out; an exception.
    "worker_stopped": Ending("failed", "agent_error", hang_up=True, lost="stopped"),
    "worker_failed": Ending("failed", "agent_error", hang_up=True, apologise=True, lost="failed"),
    # So many agents were lost in this call that another one would be, too.
    "agents_lost": Ending("failed", "agent_error", hang_up=True, apologise=True),
}
