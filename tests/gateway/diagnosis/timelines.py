"""Builds calls from literal timelines: the record is folded from the events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from core.events import Source, ended
from core.models import CallEvent
from gateway.diagnosis.diagnose import Diagnosis, diagnose
from gateway.store.call_status import Call, CallState, CallType, StoredEvent, fold

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = BEGAN + timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Told:
    """An event, ``at`` seconds after the call began."""

    at: float
    type: str
    data: dict[str, Any]
    source: Source

    def later(self, by: float) -> Told:
        return replace(self, at=self.at + by)


def gateway(at: float, type: str, **data: Any) -> Told:
    return Told(at, type, data, "gateway")


def worker(at: float, type: str, **data: Any) -> Told:
    return Told(at, type, data, "worker")


def livekit(at: float, type: str, **data: Any) -> Told:
    return Told(at, f"livekit.{type}", data, "livekit")


def over(at: float, source: Source, *args: Any, **facts: Any) -> Told:
    return Told(at, "call.ended", ended(*args, **facts), source)


def turn(at: float, said: str = "", answer: str = "", **changes: Any) -> Told:
    """Return a turn whose words ended at ``at``; the answer began 0.6 s later."""
    ms = round((at - ANSWERED) * 1000)
    values = {"id": f"turn_{at}", "transcript": said, "response": answer, "endMs": ms}
    if answer:
        values |= {"responseStartMs": ms + 600, "latency": {"llm": 300, "total": 600}}
    return worker(at + 2, "turn", **{**values, **changes})


ANSWERED = 3.0
"""Seconds after the beginning of these calls."""

DIALLED = [
    gateway(0.0, "call.queued"),
    gateway(0.1, "call.dialing", participantId="PA_1", sipCallId="SCL_1"),
]
RINGS = [*DIALLED, gateway(0.8, "call.ringing")]
TALKS = [
    *RINGS,
    worker(0.9, "agent.joined"),
    worker(1.4, "agent.ready", stt="deepgram/nova-3", llm="openai/gpt-x", tts="cartesia/sonic-3"),
    gateway(ANSWERED, "call.answered"),
    turn(4, answer="Hello."),
]
ARRIVES = [gateway(0.0, "call.queued"), gateway(0.0, "call.ringing")]
STREAMS = [
    gateway(0.0, "call.queued"),
    worker(0.5, "stream.connected"),
    worker(0.6, "agent.joined"),
    worker(1.0, "agent.ready"),
    worker(ANSWERED, "call.answered"),
]


def completed(at: float = 30.0, reason: Any = "user_hangup", **facts: Any) -> list[Told]:
    causes = {"user_hangup": "caller_hung_up", "agent_hangup": "agent_hung_up"}
    facts = {"cause": causes.get(reason, reason)} | facts
    return [
        over(at, "worker", "completed", reason, **facts),
        worker(at + 0.1, "agent.left", cause=facts["cause"]),
    ]


def failed(at: float = 30.0, cause: str = "worker_failed", detail: str = "") -> list[Told]:
    return [
        over(at, "worker", "failed", "agent_error", cause=cause, detail=detail),
        worker(at + 0.1, "agent.left", cause=cause),
    ]


def called(
    events: list[Told], direction: Any = "outbound", type: CallType = "pstn"
) -> tuple[Call, list[StoredEvent]]:
    """Return the record and its stored events; they arrived in order of time."""
    state, stored = CallState(), []
    for seq, told in enumerate(sorted(events, key=lambda told: told.at), start=1):
        event = CallEvent(
            id=f"evt_{seq}", type=told.type, data=told.data, at=BEGAN + timedelta(seconds=told.at)
        )
        state = fold(state, event, told.source)
        stored.append(
            StoredEvent(**event.model_dump(), call_id="call_1", seq=seq, source=told.source)
        )
    record = Call(
        id="call_1",
        agent_id="agt_1",
        direction=direction,
        type=type,
        from_number="+15105550123",
        to_number="+15551234567",
        status=state.status,
        disconnection_reason=state.reason,
        sip_status_code=state.sip_status_code,
        sip_reason=state.sip_reason,
        participant_id=state.participant_id,
        room_name="room",
        participant_identity="caller",
        created_at=BEGAN,
        ringing_at=state.ringing_at,
        answered_at=state.answered_at,
        ended_at=state.ended_at,
        max_duration_ms=60_000,
    )
    return record, stored


def diagnosed(
    events: list[Told], direction: Any = "outbound", type: CallType = "pstn"
) -> Diagnosis:
    return diagnose(*called(events, direction, type), NOW)
