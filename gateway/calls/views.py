"""Calls as the API shows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal

from pydantic import Field

from core.models import Direction, DisconnectionReason, Model, Status, Timestamp, Turn
from core.recordings.config import ConsentMode
from core.recordings.consent import ConsentStatus
from gateway.fields.jurisdictions import consent_mode
from gateway.http.paging import Listing
from gateway.store.call_status import Call, CallType, StoredEvent

_SNIPPET = 140


@dataclass(frozen=True, slots=True)
class Recorded:
    """Whether a call's recording can be heard, and the link to it."""

    available: bool = False
    url: str | None = None


NO_RECORDING: Final = Recorded()


class ConsentView(Model):
    mode: ConsentMode = Field(
        description="What holds for this call: the agent's mode, or opt_in by jurisdiction."
    )
    status: ConsentStatus
    at: Timestamp | None = Field(description="Since when; null: not asked.")


class CallView(Model):
    """A call, as lists show it."""

    id: str
    agent_id: str | None
    agent_version: int | None
    agent_name: str | None
    phone_number_id: str | None
    phone_number: str | None = Field(description="The agent's number, E.164 if known.")
    from_number: str | None
    to_number: str | None
    direction: Direction
    type: CallType
    status: Status
    disconnection_reason: DisconnectionReason | None
    sip_status_code: int | None
    sip_reason: str | None
    room_name: str
    participant_identity: str
    participant_id: str | None
    sip_call_id: str | None
    created_at: Timestamp
    started_at: Timestamp = Field(description="Another name of createdAt.")
    ringing_at: Timestamp | None
    answered_at: Timestamp | None
    ended_at: Timestamp | None
    duration_seconds: float | None
    metadata: dict[str, Any]
    consent: ConsentView
    recording_available: bool
    recording_url: str | None = Field(
        description="A link for ten minutes, which needs no Authorization. null in webhooks."
    )
    last_transcript_snippet: str | None

    @classmethod
    def of(cls, call: Call, last: Turn | None, recording: Recorded = NO_RECORDING) -> CallView:
        """Return the view of ``call``; ``last`` is its last turn."""
        return cls(**_shown(call, last, recording))


class CallDetail(CallView):
    transcripts: list[Turn]
    latency: dict[str, float] = Field(
        description="The median of each part of the turns' latencies, and of their totals, in ms: "
        "endpointing, stt, llm, tools, tts, transport, total."
    )

    @classmethod
    def with_turns(
        cls, call: Call, turns: Sequence[Turn], recording: Recorded = NO_RECORDING
    ) -> CallDetail:
        shown = _shown(call, turns[-1] if turns else None, recording)
        return cls(**shown, transcripts=list(turns), latency=_latency(turns))


class CallList(Listing[CallView]):
    pass


class Transcript(Model):
    call_id: str
    status: Status
    transcripts: list[Turn]


class EventView(Model):
    """One line of the timeline, as SSE carries it (``event:`` is its type)."""

    id: str
    type: str
    at: Timestamp
    source: Literal["gateway", "worker", "livekit", "reconciler"]
    data: dict[str, Any]

    @classmethod
    def of(cls, event: StoredEvent) -> EventView:
        return cls(**event.model_dump(exclude={"seq", "call_id"}))


def _shown(call: Call, last: Turn | None, recording: Recorded) -> dict[str, Any]:
    ours = call.to_number if call.direction == "inbound" else call.from_number
    return {
        **call.model_dump(),
        "phone_number": ours,
        "started_at": call.created_at,
        "duration_seconds": call.duration_seconds,
        "consent": ConsentView(
            mode=consent_mode(call.agent_consent, call.from_number, call.to_number),
            status=call.consent_status or "not_asked",
            at=call.consent_at,
        ),
        "recording_available": recording.available,
        "recording_url": recording.url,
        "last_transcript_snippet": _snippet(last),
    }


def _snippet(last: Turn | None) -> str | None:
    said = (last.response or last.transcript) if last else ""
    if len(said) > _SNIPPET:
        return f"{said[: _SNIPPET - 1].rstrip()}…"
    return said or None


def _latency(turns: Sequence[Turn]) -> dict[str, float]:
    measured: defaultdict[str, list[float]] = defaultdict(list)
    for turn in turns:
        for name, milliseconds in turn.latency.items():
            measured[name].append(milliseconds)
    return {name: round(median(values), 1) for name, values in measured.items()}
