"""The fold of a timeline into a status."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from core.events import Source, ended
from core.models import TERMINAL, CallEvent
from gateway.store.call_status import CallState, fold

pytestmark = pytest.mark.unit

T0 = datetime(2026, 1, 31, 12, tzinfo=UTC)


def at(seconds: float, type_: str, **data: object) -> CallEvent:
    return CallEvent(type=type_, at=T0 + timedelta(seconds=seconds), data=data)


def run(*events: tuple[CallEvent, Source]) -> CallState:
    state = CallState()
    for event, source in events:
        state = fold(state, event, source)
    return state


RINGING = at(1, "call.ringing")
ANSWERED = at(3, "call.answered")
BY_WORKER = at(9, "call.ended", **ended("completed", "agent_hangup"))
BY_LIVEKIT = at(9.2, "call.ended", **ended("completed", "user_hangup"))
BUSY = at(2, "call.ended", **ended("busy", "dial_busy", sip_status_code=486, sip_reason="Busy"))


def test_a_call_goes_forward() -> None:
    state = CallState()
    seen = []
    for event in (RINGING, ANSWERED, BY_WORKER):
        state = fold(state, event, "worker")
        seen.append(state.status)
    assert seen == ["ringing", "in-progress", "completed"]
    assert (state.ringing_at, state.answered_at, state.ended_at) == (
        RINGING.at,
        ANSWERED.at,
        BY_WORKER.at,
    )


def test_disorder_and_duplicates_give_the_same_record() -> None:
    facts: list[tuple[CallEvent, Source]] = [
        (RINGING, "worker"),
        (ANSWERED, "gateway"),
        (BY_WORKER, "worker"),
        (BY_LIVEKIT, "livekit"),
    ]
    results = {run(*order, *order) for order in itertools.permutations(facts)}
    assert len(results) == 1
    (state,) = results
    assert (state.status, state.reason) == ("completed", "agent_hangup")
    assert state.ended_at == BY_WORKER.at


def test_the_earliest_telling_of_an_answer_counts() -> None:
    later = at(3.4, "call.answered")
    assert run((later, "worker"), (ANSWERED, "gateway")).answered_at == ANSWERED.at


def test_an_answered_call_is_not_canceled() -> None:
    given_up = at(4, "call.ended", **ended("canceled", "user_hangup"))
    state = run((ANSWERED, "worker"), (given_up, "worker"))
    assert (state.status, state.reason) == ("completed", "user_hangup")
    assert run((RINGING, "worker"), (given_up, "worker")).status == "canceled"


def test_a_late_ringing_does_not_move_an_answered_call_back() -> None:
    assert run((ANSWERED, "gateway"), (RINGING, "worker")).status == "in-progress"


@pytest.mark.parametrize("later", [RINGING, ANSWERED, BY_LIVEKIT])
def test_a_terminal_status_never_changes(later: CallEvent) -> None:
    state = run((BUSY, "gateway"), (later, "livekit"))
    assert (state.status, state.reason, state.sip_status_code, state.sip_reason) == (
        "busy",
        "dial_busy",
        486,
        "Busy",
    )
    assert state.ended_at == BUSY.at


def test_a_poorer_source_does_not_replace_the_reason() -> None:
    state = run((BY_WORKER, "worker"), (BY_LIVEKIT, "livekit"))
    assert state.reason == "agent_hangup"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"status": "completed"},
        {"status": "in-progress", "reason": "user_hangup"},
        {"status": "completed", "reason": "whatever"},
        {"status": ["completed"], "reason": {}},
        {"status": 7, "reason": "user_hangup"},
    ],
)
def test_a_malformed_ending_changes_nothing(data: dict[str, object]) -> None:
    state = run((at(1, "call.ended", **data), "worker"))
    assert state == CallState()
    assert state.status not in TERMINAL


def test_an_unknown_event_changes_nothing() -> None:
    assert run((at(1, "tool.called", name="x"), "worker")) == CallState()


def test_the_first_ids_of_a_participant_stay() -> None:
    first = at(1, "call.dialing", participantId="PA_1", sipCallId="SCL_1")
    second = at(2, "call.dialing", participantId="PA_2", sipCallId=7)
    state = run((first, "gateway"), (second, "gateway"))
    assert (state.participant_id, state.sip_call_id) == ("PA_1", "SCL_1")


ASKED = at(4, "consent.asked")
ASKED_AGAIN = at(5, "consent.asked")
GRANTED = at(6, "consent.granted", by="words")
REFUSED = at(7, "consent.refused", by="silence")


def test_consent_goes_forward() -> None:
    state = CallState()
    seen = []
    for event in (ASKED, ASKED_AGAIN, GRANTED):
        state = fold(state, event, "worker")
        seen.append((state.consent_status, state.consent_at))
    assert seen == [("asked", ASKED.at), ("asked", ASKED.at), ("granted", GRANTED.at)]
    assert run((ASKED, "worker"), (REFUSED, "worker")).consent_status == "refused"


@pytest.mark.parametrize(("outcome", "other"), [(GRANTED, REFUSED), (REFUSED, GRANTED)])
def test_the_outcome_of_consent_stays(outcome: CallEvent, other: CallEvent) -> None:
    expected = run((outcome, "worker"))
    late = run(*((event, "worker") for event in (outcome, outcome, ASKED, other, BY_WORKER)))
    assert (late.consent_status, late.consent_at) == (expected.consent_status, outcome.at)
