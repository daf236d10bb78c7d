"""The cause that a literal timeline shows, its evidence and its words."""

from __future__ import annotations

import pytest

from gateway.diagnosis.facts import Facts
from gateway.diagnosis.rules import RULES
from gateway.store.call_status import CallType
from tests.gateway.diagnosis.causes import (
    CASES,
    NO_SOUND,
)
from tests.gateway.diagnosis.timelines import (
    ARRIVES,
    DIALLED,
    NOW,
    STREAMS,
    TALKS,
    Told,
    called,
    completed,
    diagnosed,
    gateway,
    over,
    turn,
    worker,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("case", "direction", "type"), CASES)
def test_a_cause(case: tuple[list[Told], str, str], direction: str, type: CallType) -> None:
    events, code, words = case
    found = diagnosed(events, direction, type)
    assert (found.code, found.verdict) == (code, "fault")
    assert found.cause is not None and words in found.cause
    assert found.advice
    assert found.evidence, "a cause rests on events"
    assert {line.event_id for line in found.evidence} <= {line.event_id for line in found.timeline}


def test_every_rule_has_a_case() -> None:
    cases = [
        Facts(*called(case[0], direction, type), NOW)
        for case, direction, type in (param.values for param in CASES)
    ]
    assert [rule.__name__ for rule in RULES if not any(map(rule, cases))] == []
    assert len({param.values[0][1] for param in CASES}) >= 60


@pytest.mark.parametrize("reason", ["user_hangup", "agent_hangup", "call_transfer"])
def test_a_good_call_has_none(reason: str) -> None:
    talk = [turn(at, "hi", "yes") for at in (8, 14, 20)]
    tool = worker(15, "tool.called", name="book", ok=True, durationMs=300)
    found = diagnosed([*TALKS, *talk, tool, *completed(reason=reason)])
    assert (found.verdict, found.code, found.cause, found.advice) == ("good", None, None, None)
    assert not (found.evidence or found.others or found.unknown or found.gaps)
    assert len(found.timeline) == len(TALKS) + 6


def test_good_calls_of_other_kinds() -> None:
    arrives = [*ARRIVES, worker(0.5, "agent.joined"), worker(1, "agent.ready")]
    answered = worker(1.1, "call.answered")
    assert diagnosed([*arrives, answered, *completed()], "inbound").verdict == "good"
    assert diagnosed([*STREAMS, *completed()], "inbound", "stream").verdict == "good"


def test_no_sound_but_keys() -> None:
    found = diagnosed([*TALKS, NO_SOUND, turn(12, "[The caller pressed 1]", "ok"), *completed()])
    assert (found.code, found.others) == ("one_way_audio", [])
    worse = worker(20, "silence.prompted", text="hello?")
    events = [*TALKS, NO_SOUND, turn(12, "[The caller pressed 1]", "ok"), worse]
    assert diagnosed([*events, *completed(reason="inactivity")]).code == "silence"


def test_a_client_that_writes_needs_no_sound() -> None:
    found = diagnosed([*STREAMS, NO_SOUND, turn(12, "hi", "yes"), *completed()], "web", "stream")
    assert (found.verdict, found.gaps) == ("good", [])


def test_sound_that_came_late_is_no_cause() -> None:
    late = worker(15, "audio.received", afterMs=11_000)
    found = diagnosed([*TALKS, NO_SOUND, late, *completed()])
    assert found.verdict == "good"
    assert [(gap.owed, gap.ms, gap.came) for gap in found.gaps] == [
        ("sound from the far end", 6000, True)
    ]


class TestUnknown:
    @pytest.mark.parametrize(
        "end",
        [
            over(5, "gateway", "failed", "dial_failed"),
            over(5, "gateway", "failed", "dial_rejected", sip_status_code=699),
            over(5, "livekit", "failed", "agent_error"),
        ],
    )
    def test_it_says_so_and_invents_nothing(self, end: Told) -> None:
        found = diagnosed([*DIALLED, end])
        assert (found.verdict, found.code, found.cause, found.evidence) == (
            "unknown",
            None,
            None,
            [],
        )
        assert end.data["reason"] in found.unknown[0]
        assert found.advice and "log" in found.advice

    def test_a_fault_that_the_call_survived_does_not_explain_its_end(self) -> None:
        tool = worker(9, "tool.called", name="book", ok=False, durationMs=10)
        found = diagnosed([*TALKS, tool, over(12, "livekit", "failed", "agent_error")])
        assert (found.verdict, found.code) == ("unknown", None)
        assert [other.code for other in found.others] == ["tool_failed"]

    def test_data_that_is_not_as_expected(self) -> None:
        odd = [
            worker(4, "provider.error", stage=7, message=None, recoverable="no"),
            worker(5, "webhook.failed", status="500", reason={}),
            worker(6, "tool.called", name=None, ok=False, durationMs="x"),
            worker(7, "something.new", reason=["a"], status=True),
            over(9, "worker", "completed", "user_hangup", cause=[], detail=1, note={}),
        ]
        assert diagnosed([*TALKS, *odd]).verdict == "fault"


def test_a_call_in_progress_is_diagnosed_as_far_as_it_has_come() -> None:
    assert diagnosed(TALKS).verdict == "running"
    tool = worker(9, "tool.called", name="book", ok=False, durationMs=10)
    found = diagnosed([*TALKS, tool])
    assert (found.verdict, found.code) == ("fault", "tool_failed")


def test_a_turn_that_was_reported_twice_is_one_line() -> None:
    first, then = turn(8, "hi"), turn(8, "hi", "yes")
    found = diagnosed([*TALKS, first, then.later(1), *completed()])
    lines = [line.what for line in found.timeline if line.type == "turn"]
    assert lines[1:] == ["the caller spoke, the agent answered after 600 ms"]
    silent = [turn(at, "hi", id="same") for at in (8, 12)]
    found = diagnosed([*TALKS, *silent, turn(16, "hi"), *completed()])
    assert found.code == "turns_unanswered"
    assert len(found.evidence) == 2


def test_nothing_that_was_said_pressed_or_dialled_is_shown() -> None:
    events = [
        *TALKS,
        turn(8, "my secret word", "your secret answer"),
        worker(9, "dtmf.received", digit="*"),
        worker(9, "dtmf.sent", digits="4711"),
        worker(9, "barge_in", atMs=1, heard="half an answer"),
        worker(9, "silence.prompted", text="are you there"),
        worker(9, "machine.detected", kind="voicemail", evidence="please leave a message"),
        gateway(9, "transfer.started", to="+15558889999", mode="cold"),
        gateway(10, "recording.stored", key="acme/secret/key.wav", sha256="feedbeef"),
        gateway(10, "recording.accessed", by="acme", via="api", what="audio"),
        worker(11, "something.new", text="unheard of", password="pw"),
        *completed(),
    ]
    shown = diagnosed(events).model_dump_json()
    for hidden in ("secret", "*", "4711", "half an", "are you", "please", "8889999", "feedbeef",
                   "unheard", "pw", "5550123", "1234567"):  # fmt: skip
        assert hidden not in shown, hidden
