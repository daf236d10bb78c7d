"""The diagnosis of one call: its cause, what else went wrong, what is not known, the timeline."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import Field

from core.models import DisconnectionReason, Model, Status, Timestamp
from core.models import now as now_
from gateway.diagnosis.facts import Facts
from gateway.diagnosis.finding import Finding, Weight, judge
from gateway.diagnosis.gaps import gaps_of
from gateway.diagnosis.lines import Area, area_of, line_of
from gateway.diagnosis.rules import RULES
from gateway.store.call_status import Call, StoredEvent

Verdict = Literal["good", "fault", "unknown", "running"]


class Line(Model):
    """One event of the timeline."""

    event_id: str
    at: Timestamp
    offset_ms: int = Field(description="Since the call was created.")
    area: Area
    type: str = Field(description="As on the call's event stream.")
    source: Literal["gateway", "worker", "livekit", "reconciler"]
    what: str


class Found(Model):
    """One thing that went wrong."""

    code: str
    effect: Literal["hurt", "closed", "ruined", "ended"] = Field(
        description="On the call. hurt: it survived; closed: a person, a machine or a limit ended "
        "it, nothing broke; ruined: it went on, but not as a conversation; ended: it ended the "
        "call, or kept it from beginning."
    )
    cause: str
    evidence: list[Line] = Field(description="The events that show it.")
    advice: str


class GapView(Model):
    since: Timestamp
    until: Timestamp
    ms: int
    owed: str = Field(description="The thing that should have come.")
    came: bool = Field(description="false: not until the call's end, or until now.")


class Diagnosis(Model):
    call_id: str
    status: Status
    disconnection_reason: DisconnectionReason | None
    sip_status_code: int | None
    sip_reason: str | None
    verdict: Verdict = Field(
        description="good: nothing went wrong; fault: cause says what; unknown: the call failed, "
        "and its timeline does not say why; running: nothing went wrong so far."
    )
    code: str | None = Field(description="The cause's short name; null: no cause.")
    cause: str | None = Field(description="The likely cause, in a sentence.")
    evidence: list[Line] = Field(description="The events that show the cause.")
    advice: str | None
    others: list[Found] = Field(description="What else went wrong, the worse first.")
    unknown: list[str] = Field(description="What the timeline does not say.")
    gaps: list[GapView] = Field(description="When something was owed and did not come in time.")
    timeline: list[Line]


_WHERE_TO_LOOK = "Search the logs of gateway, worker and SIP service for the call's id."


def diagnose(call: Call, events: Iterable[StoredEvent], now: datetime | None = None) -> Diagnosis:
    """Return the diagnosis of ``call``, finished or not."""
    facts = Facts(call, events, now or now_())
    found = judge(facts, RULES)
    lines = {event.id: _line(event, facts) for event in facts.told_once()}
    main = found[0] if found else None
    verdict, unknown = _verdict(facts, found), [f.unknown for f in found if f.unknown]
    if verdict == "unknown":
        # Faults that the call survived do not explain its end.
        main = None
        unknown.insert(0, _unexplained(facts))
    others = [finding for finding in found if finding is not main]
    return Diagnosis(
        call_id=call.id,
        status=call.status,
        disconnection_reason=call.disconnection_reason,
        sip_status_code=call.sip_status_code,
        sip_reason=call.sip_reason,
        verdict=verdict,
        code=main.code if main else None,
        cause=main.cause if main else None,
        evidence=[lines[event.id] for event in main.evidence] if main else [],
        advice=main.advice if main else _WHERE_TO_LOOK if verdict == "unknown" else None,
        others=[_found(finding, lines) for finding in others],
        unknown=unknown,
        gaps=[
            GapView(since=gap.since, until=gap.until, ms=gap.ms, owed=gap.owed, came=gap.came)
            for gap in gaps_of(facts)
        ],
        timeline=list(lines.values()),
    )


def _verdict(facts: Facts, found: list[Finding]) -> Verdict:
    call = facts.call
    explained = bool(found) and found[0].weight > Weight.HURT
    if call.ended and call.status != "completed" and not explained:
        return "unknown"
    if found:
        return "fault"
    return "good" if call.ended else "running"


def _unexplained(facts: Facts) -> str:
    call = facts.call
    sip = f", SIP status {facts.sip}" if facts.sip else ""
    return (
        f"The record says {call.status}, {call.disconnection_reason}{sip}; no event on the "
        "timeline says why."
    )


def _line(event: StoredEvent, facts: Facts) -> Line:
    since = event.at - facts.call.created_at
    return Line(
        event_id=event.id,
        at=event.at,
        offset_ms=round(since.total_seconds() * 1000),
        area=area_of(event, facts),
        type=event.type,
        source=event.source,
        what=line_of(event, facts),
    )


def _found(finding: Finding, lines: dict[str, Line]) -> Found:
    return Found(
        code=finding.code,
        effect=_EFFECTS[finding.weight],
        cause=finding.cause,
        evidence=[lines[event.id] for event in finding.evidence],
        advice=finding.advice,
    )


_EFFECTS: dict[Weight, Literal["hurt", "closed", "ruined", "ended"]] = {
    Weight.HURT: "hurt",
    Weight.CLOSED: "closed",
    Weight.RUINED: "ruined",
    Weight.ENDED: "ended",
}
