"""The timeline's vocabulary, and the fold that makes a call's status of it.

Whoever learns a fact appends an event: the gateway (the dial and its verdict),
the worker (what it sees and hears in the room), LiveKit (webhooks), the
reconciler. Events come late, twice and in any order; the fold is monotonic:
a status only moves forward and a terminal one never changes.

    call.queued                                          accepted, nothing dialled yet
    call.dialing     {participantId, sipCallId}          the SIP participant is in the room
    call.ringing     {participantId?, sipCallId?}        the far end alerts (180 or 183); or a
                                                         caller is in the room and hears ringing
    call.answered                                        the far end picked up (200)
    call.ended       {status, reason, sipStatusCode?, sipReason?, …}
    agent.dispatched, agent.joined, agent.ready, agent.left
    turn             {a core.models.Turn}                the same id again: the newer wins
    barge_in         {atMs, heard}
    tool.called      {name, ok, durationMs}
    mcp.ready        {server, tools}      mcp.failed {server, message}
    machine.detected {kind, afterMs, evidence}           no person answered: voicemail or ivr
    voicemail.left   {durationMs}                        the message was spoken to its end
    dtmf.received    {digit}      dtmf.sent {digits}
    provider.error   {stage, message, recoverable}
    transfer.started {to, mode}   transfer.ringing   transfer.answered   transfer.accepted
    transfer.failed  {reason, sipStatusCode?, sipReason?}                the agent goes on
    call.transferred {to, mode}                          the caller is with a human
    livekit.<webhook>{…}                                 as LiveKit told it, reduced to facts
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, cast, get_args

from core.models import TERMINAL, CallEvent, DisconnectionReason, Status

Source = Literal["gateway", "worker", "livekit", "reconciler"]

# Who knows best why a call ended. The dial's verdict carries the SIP answer; the
# worker knows who hung up; LiveKit's webhook only that somebody left; the
# reconciler only that nothing is there any more.
_RANK: dict[Source, int] = {"gateway": 4, "worker": 3, "livekit": 2, "reconciler": 1}

_REASONS = frozenset(get_args(DisconnectionReason))


@dataclass(frozen=True, slots=True)
class CallState:
    """The part of a call's record that events move."""

    status: Status = "queued"
    reason: DisconnectionReason | None = None
    sip_status_code: int | None = None
    sip_reason: str | None = None
    participant_id: str | None = None
    sip_call_id: str | None = None
    ringing_at: datetime | None = None
    answered_at: datetime | None = None
    ended_at: datetime | None = None
    ended_rank: int = 0
    human_legs: int = 0
    """Phones of warm transfers' humans that ring or talk, beside the call's own."""


def fold(state: CallState, event: CallEvent, source: Source) -> CallState:
    """The state after ``event``; unknown types and malformed data change nothing."""
    match event.type:
        case "call.dialing":
            return _named(state, event)
        case "call.ringing":
            state = _named(state, event)
            return _advance(replace(state, ringing_at=_earlier(state.ringing_at, event.at)))
        case "call.answered":
            return _advance(replace(state, answered_at=_earlier(state.answered_at, event.at)))
        case "call.ended":
            return _end(state, event, _RANK[source])
        case "transfer.started" if event.data.get("mode") == "warm":
            return replace(state, human_legs=state.human_legs + 1)
        case "transfer.failed":
            # Also of one that never began, or was cold.
            return replace(state, human_legs=max(0, state.human_legs - 1))
    return state


def ended(
    status: Status,
    reason: DisconnectionReason,
    *,
    sip_status_code: int | None = None,
    sip_reason: str | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """The data of a ``call.ended`` event."""
    data: dict[str, Any] = {"status": status, "reason": reason, **facts}
    if sip_status_code is not None:
        data["sipStatusCode"] = sip_status_code
    if sip_reason:
        data["sipReason"] = sip_reason
    return data


def _named(state: CallState, event: CallEvent) -> CallState:
    return replace(
        state,
        participant_id=state.participant_id or _text(event.data.get("participantId")),
        sip_call_id=state.sip_call_id or _text(event.data.get("sipCallId")),
    )


def _advance(state: CallState) -> CallState:
    if state.status in TERMINAL:
        return state
    if state.answered_at is not None:
        return replace(state, status="in-progress")
    if state.ringing_at is not None:
        return replace(state, status="ringing")
    return state


def _end(state: CallState, event: CallEvent, rank: int) -> CallState:
    status, reason = _text(event.data.get("status")), _text(event.data.get("reason"))
    if status not in TERMINAL or reason not in _REASONS:
        return state
    if state.status in TERMINAL and (status != state.status or rank <= state.ended_rank):
        # A better source may still say why, but never turn one ending into another.
        return state
    code = event.data.get("sipStatusCode")
    return replace(
        state,
        status=status,
        reason=cast(DisconnectionReason, reason),
        sip_status_code=code if isinstance(code, int) else state.sip_status_code,
        sip_reason=_text(event.data.get("sipReason")) or state.sip_reason,
        ended_at=_earlier(state.ended_at, event.at),
        ended_rank=rank,
    )


def _earlier(known: datetime | None, told: datetime) -> datetime:
    return told if known is None else min(known, told)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
