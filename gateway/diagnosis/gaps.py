"""Gaps: stretches of a call in which something was owed and did not come, or came late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gateway.diagnosis.facts import Facts


@dataclass(frozen=True, slots=True)
class Gap:
    since: datetime
    until: datetime
    owed: str
    came: bool
    """False: it did not come until the call's end, or until now."""

    @property
    def ms(self) -> int:
        return round((self.until - self.since).total_seconds() * 1000)


_RESPONSE = timedelta(seconds=5)
_AGENT = timedelta(seconds=5)
_READY = timedelta(seconds=2)
_ANSWER_MS = 4000
_REPORT = timedelta(seconds=20)
_UPLOAD = timedelta(minutes=2)


def _between(
    facts: Facts, owed: str, start: str, *ends: str, patience: timedelta = timedelta()
) -> Iterator[Gap]:
    """Yield a gap after each ``start`` that no event of ``ends`` follows within ``patience``."""
    for event in facts.all(start):
        met = facts.after(event, *ends)
        until = met.at if met is not None else facts.until
        if until - event.at > patience:
            yield Gap(event.at, until, owed, met is not None)


def response(facts: Facts) -> Iterator[Gap]:
    if not facts.on_phone:
        return
    heard = ("call.ringing", "call.answered", "call.ended")
    refused = facts.sip_status is not None or facts.ends_with("problem", "authentication")
    for gap in _between(
        facts, "a response of the far end", "call.dialing", *heard, patience=_RESPONSE
    ):
        answered = facts.first("call.ringing", "call.answered") is not None
        yield replace(gap, came=answered or bool(refused))


def agent(facts: Facts) -> Iterator[Gap]:
    first, joined = facts.first("call.queued"), facts.first("agent.joined", "stream.connected")
    if facts.call.agent_id is None or first is None:
        return
    until = joined.at if joined else facts.until
    if until - first.at > _AGENT:
        yield Gap(first.at, until, "an agent", joined is not None)


def ready(facts: Facts) -> Iterator[Gap]:
    answered_at, told = facts.call.answered_at, facts.first("agent.ready")
    if answered_at is None or facts.first("agent.joined") is None:
        return
    until = told.at if told else facts.until
    if until - answered_at > _READY:
        yield Gap(answered_at, until, "the agent's voice", told is not None)


def sound(facts: Facts) -> Iterator[Gap]:
    owed = "sound from the far end"
    for gap in _between(facts, owed, "audio.missing", "audio.received"):
        if gap.came or facts.no_sound is not None:
            yield gap


def answers(facts: Facts) -> Iterator[Gap]:
    for turn in facts.turns:
        if (
            turn.end_ms is None
            or not turn.transcript
            or (since := facts.moment(turn.end_ms)) is None
        ):
            continue
        if turn.response_start_ms is not None:
            until, waited = (
                facts.moment(turn.response_start_ms),
                turn.response_start_ms - turn.end_ms,
            )
            if until is not None and waited > _ANSWER_MS:
                yield Gap(since, until, "the agent's answer", came=True)
        elif not turn.response and not turn.masked and not turn.interrupted:
            following = [t.start_ms for t in facts.turns if (t.start_ms or 0) > turn.end_ms]
            until = facts.moment(min(m for m in following if m)) if following else facts.until
            if until is not None and (until - since) > timedelta(milliseconds=_ANSWER_MS):
                yield Gap(since, until, "the agent's answer", came=False)


def socket(facts: Facts) -> Iterator[Gap]:
    yield from _between(facts, "the client's socket", "stream.lost", "stream.connected")


def transfer(facts: Facts) -> Iterator[Gap]:
    owed = "the transfer's outcome"
    ends = ("transfer.answered", "transfer.failed", "call.transferred")
    for gap in _between(facts, owed, "transfer.started", *ends):
        if not gap.came:
            yield gap


def replacement(facts: Facts) -> Iterator[Gap]:
    yield from _between(facts, "another agent", "agent.lost", "agent.resumed")


def reports(facts: Facts) -> Iterator[Gap]:
    """The worker went silent before the end, and never said that it left."""
    told = [event for event in facts.events if event.source == "worker"]
    if facts.first("agent.joined") is None or facts.first("agent.left") or not facts.call.ended:
        return
    if told and facts.until - told[-1].at > _REPORT:
        yield Gap(told[-1].at, facts.until, "the worker's events", came=False)


def recording(facts: Facts) -> Iterator[Gap]:
    started, stopped = facts.first("recording.started"), facts.last("recording.stopped")
    if started is None or facts.first("recording.stored", "recording.failed"):
        return
    since = (stopped or started).at
    if facts.call.ended and facts.now - since > _UPLOAD:
        yield Gap(since, facts.now, "the recording's upload", came=False)


_OWED: tuple[Callable[[Facts], Iterator[Gap]], ...] = (
    response,
    agent,
    ready,
    sound,
    answers,
    socket,
    transfer,
    replacement,
    reports,
    recording,
)


def gaps_of(facts: Facts) -> list[Gap]:
    """Return all gaps in order of time."""
    found = [gap for owed in _OWED for gap in owed(facts)]
    return sorted(found, key=lambda gap: (gap.since, gap.owed))
