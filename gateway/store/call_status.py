"""A call's record, and the fold that derives its status from its timeline's events.

Events arrive late, twice and in any order. The fold is monotonic: a status only moves forward, and
a terminal one never changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, cast, get_args

from pydantic import Field

from core.events import Source
from core.models import (
    TERMINAL,
    CallEvent,
    Direction,
    DisconnectionReason,
    Model,
    Status,
    Timestamp,
)
from core.recordings.config import Consent
from core.recordings.consent import ConsentStatus

CallType = Literal["pstn", "web", "stream"]
"""A phone by SIP, a browser by WebRTC, or a session on a WebSocket."""
Place = Literal["wanted", "held"]
"""What a call has of a worker's places: it waits for one, or one is reserved or taken."""


class Call(Model):
    """The record of a call."""

    id: str
    auth_id: str | None = Field(default=None, exclude=True)
    """The tenant; None for the operator. Never shown."""
    agent_id: str | None = None
    agent_version: int | None = None
    agent_name: str | None = None
    phone_number_id: str | None = None
    from_number: str | None = None
    to_number: str | None = None
    direction: Direction
    type: CallType = "pstn"
    max_duration_ms: int = Field(default=86_400_000, exclude=True)
    """The limit, counted from the answer."""
    status: Status = "queued"
    disconnection_reason: DisconnectionReason | None = None
    sip_status_code: int | None = None
    sip_reason: str | None = None
    room_name: str
    participant_identity: str
    participant_id: str | None = None
    sip_call_id: str | None = None
    created_at: Timestamp
    ringing_at: Timestamp | None = None
    answered_at: Timestamp | None = None
    ended_at: Timestamp | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    record: bool = Field(default=False, exclude=True)
    """The call asks to be recorded."""
    agent_consent: Consent = Field(default_factory=Consent, exclude=True)
    """The agent's configuration of consent."""
    consent_status: ConsentStatus | None = Field(default=None, exclude=True)
    """None: not asked, or not yet."""
    consent_at: Timestamp | None = Field(default=None, exclude=True)
    agent_epoch: int = Field(default=0, exclude=True)
    agent_worker: str | None = Field(default=None, exclude=True)
    place: Place | None = Field(default=None, exclude=True)
    place_worker: str | None = Field(default=None, exclude=True)

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL

    @property
    def duration_seconds(self) -> float | None:
        """Seconds from answer to end; None while the call goes on, 0 if it was never answered."""
        if self.ended_at is None:
            return None
        if self.answered_at is None:
            return 0.0
        return max(0.0, round((self.ended_at - self.answered_at).total_seconds(), 3))


class StoredEvent(CallEvent):
    """A stored event; ``seq`` orders all events of the system by arrival."""

    call_id: str
    seq: int
    source: Source


# Which source knows best why a call ended. The dial's verdict carries the SIP response;
# the worker knows who hung up; LiveKit's webhook says only that a participant left; the
# reconciler knows only that the room or participant is gone.
RANK: dict[Source, int] = {"gateway": 4, "worker": 3, "livekit": 2, "reconciler": 1}

REPLACED = "agent_replaced"
"""The cause of an agent that left because another one of its call came: that one has the place."""

_REASONS = frozenset(get_args(DisconnectionReason))


@dataclass(frozen=True, slots=True)
class CallState:
    """The part of a call's record that events change."""

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
    """Legs of warm transfers' humans that are ringing or answered, beside the call's own leg."""
    consent_status: ConsentStatus | None = None
    consent_at: datetime | None = None
    agent_epoch: int = 0
    """How many agents were lost; the number of the present one (core.recovery)."""
    agent_worker: str | None = None
    """The worker that has the present agent."""
    place: Place | None = None
    """None: the call has no agent, or not any more."""
    place_worker: str | None = None
    """The worker whose place is held."""


def fold(state: CallState, event: CallEvent, source: Source) -> CallState:
    """Return the state after ``event``; unknown types and malformed data change nothing."""
    match event.type:
        case "call.dialing":
            return _named(state, event)
        case "call.ringing":
            state = _named(state, event)
            return _advance(replace(state, ringing_at=_earlier(state.ringing_at, event.at)))
        case "call.answered":
            return _advance(replace(state, answered_at=_earlier(state.answered_at, event.at)))
        case "call.ended":
            state = _end(state, event, RANK[source])
            # An agent that is there holds its place until it has left.
            return _without_place(state) if state.ended_at and not state.agent_worker else state
        case "transfer.started" if event.data.get("mode") == "warm":
            return replace(state, human_legs=state.human_legs + 1)
        case "transfer.failed":
            # It may belong to a transfer that never started, or to a cold one: do not go below 0.
            return replace(state, human_legs=max(0, state.human_legs - 1))
        case "agent.joined" if event.data.get("epoch", 0) == state.agent_epoch:
            worker = _text(event.data.get("worker"))
            return replace(state, agent_worker=worker, place="held", place_worker=worker)
        case "agent.lost" if event.data.get("epoch") == state.agent_epoch:
            return replace(state, agent_epoch=state.agent_epoch + 1, agent_worker=None)
        case "agent.left" if event.data.get("cause") != REPLACED:
            # One that was replaced has a successor in its seat, which may be known already.
            return _without_place(replace(state, agent_worker=None))
        case "consent.asked" if state.consent_status is None:
            return replace(state, consent_status="asked", consent_at=event.at)
        case "consent.granted" if state.consent_status in (None, "asked"):
            return replace(state, consent_status="granted", consent_at=event.at)
        case "consent.refused" if state.consent_status in (None, "asked"):
            return replace(state, consent_status="refused", consent_at=event.at)
    return state


def _without_place(state: CallState) -> CallState:
    return replace(state, place=None, place_worker=None)


def is_former_agents_own(event: CallEvent) -> bool:
    """Return True if the event counts only when the present agent reports it.

    All others are history, and a lost agent's may arrive after its loss.
    """
    return event.type == "call.ended" or event.type.startswith("agent.")


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
    if status == "canceled" and state.answered_at is not None:
        # An agent that has just taken the call over does not know yet that it was answered.
        answered = event.model_copy(update={"data": {**event.data, "status": "completed"}})
        return _end(state, answered, rank)
    if state.status in TERMINAL and (status != state.status or rank <= state.ended_rank):
        # A better source may still correct the reason, but never the terminal status.
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
