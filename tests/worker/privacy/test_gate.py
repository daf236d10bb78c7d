"""What is posted of a call's words and keys while the gate is shut, and afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from core.models import CallEvent, Turn, Word
from worker.privacy.gate import Gate
from worker.privacy.redaction import Finder
from worker.privacy.redactor import Redactor

pytestmark = pytest.mark.unit


class Call:
    """A gate with a clock that a test sets."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.posted: list[CallEvent] = []
        self.gate = Gate(self._post, lambda: self.now_ms)

    def _post(self, type: str, data: dict[str, Any]) -> CallEvent:
        self.posted.append(CallEvent(type=type, data=data))
        return self.posted[-1]

    def turn(self, start_ms: int | None, end_ms: int | None) -> dict[str, Any]:
        words = [Word(text="secret", start_ms=start_ms or 0, end_ms=end_ms or 0)]
        turn = Turn(
            id="turn_1",
            transcript="secret",
            response="secret",
            start_ms=start_ms,
            end_ms=end_ms,
            words=words,
            response_words=words,
        )
        return self.gate.post("turn", turn.wire()).data


def test_an_open_gate_changes_nothing() -> None:
    call = Call()
    assert call.gate.is_open
    assert call.gate.post("dtmf.received", {"digit": "7"}).data == {"digit": "7"}
    told = call.turn(0, 100)
    assert (told["transcript"], told["masked"]) == ("secret", False)


@pytest.mark.parametrize(
    ("type", "words"),
    [
        ("dtmf.received", {"digit": "7"}),
        ("barge_in", {"heard": "secret", "atMs": 5}),
        ("silence.prompted", {"text": "secret"}),
        ("machine.detected", {"evidence": "secret", "kind": "voicemail"}),
    ],
)
def test_words_and_keys_do_not_pass_a_shut_gate(type: str, words: dict[str, Any]) -> None:
    call = Call()
    call.gate.shut("consent")
    told = call.gate.post(type, words).data
    assert told["masked"] and "secret" not in told.values() and "7" not in told.values()
    assert ("atMs" in told) == ("atMs" in words)


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "kept"),
    [
        (0, 999, True),
        (500, 1000, False),
        (1200, 1300, False),
        (1999, 2500, False),
        (900, 2500, False),
        (2000, 2500, True),
        (None, None, True),
    ],
)
def test_a_turn_is_judged_by_when_it_was_said(
    start_ms: int | None, end_ms: int | None, kept: bool
) -> None:
    call = Call()
    call.now_ms = 1000
    call.gate.shut("paused")
    call.now_ms = 2000
    call.gate.open("paused")
    call.now_ms = 3000
    told = call.turn(start_ms, end_ms)
    assert told["masked"] is not kept
    assert ("secret" in str(told)) is kept


def test_the_gate_opens_when_the_last_reason_is_gone() -> None:
    call = Call()
    opened = []
    call.gate.opened.append(lambda: opened.append(call.now_ms))
    call.gate.shut("consent")
    call.now_ms = 10
    call.gate.shut("masked")
    call.now_ms = 20
    call.gate.open("consent")
    assert not call.gate.is_open and call.gate.spans() == ((0, None),) and not opened
    call.now_ms = 30
    call.gate.open("masked")
    call.gate.open("masked")
    assert call.gate.is_open and call.gate.spans() == ((0, 30),) and opened == [30]


def test_a_turn_across_the_present_is_withheld_while_the_gate_is_shut() -> None:
    call = Call()
    call.now_ms = 1000
    call.gate.shut("masked")
    assert call.turn(None, None)["masked"]
    assert call.turn(500, 5000)["masked"]
    assert not call.turn(0, 900)["masked"]


def test_an_event_without_words_passes_a_shut_gate() -> None:
    call = Call()
    call.gate.shut("masked")
    assert call.gate.post("tool.called", {"name": "book", "ok": True}).data == {
        "name": "book",
        "ok": True,
    }


def test_the_redactor_cuts_what_passes_and_hides_keys() -> None:
    call = Call()
    call.gate.redactor = Redactor(Finder(["card"]))
    told = call.gate.post("barge_in", {"heard": "4242424242424242, please", "atMs": 5})
    assert told.data == {"heard": "[card], please", "atMs": 5}
    assert call.gate.post("dtmf.received", {"digit": "4"}).data == {"masked": True}
    call.gate.redactor = Redactor(Finder(["email"]))
    assert call.gate.post("dtmf.received", {"digit": "4"}).data == {"digit": "4"}
