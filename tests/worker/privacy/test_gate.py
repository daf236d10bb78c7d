"""What is posted of a call's words and keys while the gate is shut, and afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from core.models import CallEvent, Turn, Word
from worker.privacy import gate
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

    def told(self, type: str, data: dict[str, Any]) -> dict[str, Any]:
        """Return what was posted of an event."""
        self.gate.post(type, data)
        return self.posted[-1].data

    def turn(self, start_ms: int | None, end_ms: int | None) -> dict[str, Any]:
        words = [Word(text="secret", start_ms=start_ms or 0, end_ms=end_ms or 0)]
        turn = Turn(
            id="turn_1",
            transcript="secret",
            response="secret",
            start_ms=start_ms,
            end_ms=end_ms,
            response_start_ms=start_ms,
            response_end_ms=end_ms,
            words=words,
            response_words=words,
        )
        return self.told("turn", turn.wire())


def test_an_open_gate_changes_nothing() -> None:
    call = Call()
    assert call.gate.is_open
    assert call.told("dtmf.received", {"digit": "7"}) == {"digit": "7"}
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
    told = call.told(type, words)
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
    told = call.told("tool.called", {"name": "book", "ok": True})
    assert told == {"name": "book", "ok": True}


def test_the_redactor_cuts_what_passes_and_hides_keys() -> None:
    call = Call()
    call.gate.redactor = Redactor(Finder(["card"]))
    told = call.told("barge_in", {"heard": "4242424242424242, please", "atMs": 5})
    assert told == {"heard": "[card], please", "atMs": 5}
    assert call.told("dtmf.received", {"digit": "4"}) == {"masked": True}
    call.gate.redactor = Redactor(Finder(["email"]))
    assert call.told("dtmf.received", {"digit": "4"}) == {"digit": "4"}


def word(text: str, start_ms: int) -> Word:
    return Word(text=text, start_ms=start_ms, end_ms=start_ms + 300)


def shut(call: Call, from_ms: int, to_ms: int) -> None:
    call.now_ms = from_ms
    call.gate.shut("masked")
    call.now_ms = to_ms
    call.gate.open("masked")


SAID = [word("my", 1000), word("number", 1400), word("is", 3800), word("four", 4400)]
AFTER = [word("in", 5000), word("Rome", 8600)]


def across(**changes: Any) -> Turn:
    turn = Turn(
        id="turn_1",
        transcript="my number is four in Rome",
        start_ms=1000,
        end_ms=8900,
        words=[*SAID, *AFTER],
        response="Thanks.",
        response_start_ms=10_000,
        response_end_ms=10_500,
    )
    return turn.model_copy(update=changes)


def test_words_before_and_after_a_mask_are_kept() -> None:
    call = Call()
    shut(call, 3000, 8000)
    told = Turn.model_validate(call.told("turn", across().wire()))
    assert (told.transcript, told.response, told.masked) == ("my number Rome", "Thanks.", True)
    assert told.words == [SAID[0], SAID[1], AFTER[1]]
    assert (told.start_ms, told.end_ms) == (1000, 8900)


@pytest.mark.parametrize("mask", [(2100, 8000), (3000, 8200)])
def test_a_word_that_may_overlap_a_mask_is_not_kept(mask: tuple[int, int]) -> None:
    """Providers may be wrong about its time."""
    call = Call()
    shut(call, *mask)
    told = Turn.model_validate(call.told("turn", across().wire()))
    assert len(told.words) == 2 and told.transcript == " ".join(each.text for each in told.words)


def test_words_without_times_are_kept_or_not_with_their_side_of_the_turn() -> None:
    call = Call()
    shut(call, 9500, 10_100)
    told = call.told("turn", across(words=[]).wire())
    assert (told["transcript"], told["response"]) == ("my number is four in Rome", "")
    shut(call, 11_000, 12_000)
    shut(call, 5000, 5010)
    told = call.told("turn", across(id="turn_2", words=[], response_start_ms=10_200).wire())
    assert (told["transcript"], told["response"]) == ("", "Thanks.")


def test_both_reports_of_a_turn_keep_the_same_words() -> None:
    """The first one comes before the mask, or during it."""
    call = Call()
    call.now_ms = 3000
    call.gate.shut("masked")
    call.now_ms = 9000
    first = call.told("turn", across(response="").wire())
    call.gate.open("masked")
    second = call.told("turn", across().wire())
    assert first["transcript"] == second["transcript"] == "my number"

    call.now_ms = 20_000
    typed = Turn(id="turn_3", transcript="my name")
    assert call.told("turn", typed.wire())["transcript"] == "my name"
    call.now_ms = 20_100
    call.gate.shut("masked")
    call.now_ms = 30_000
    typed = typed.model_copy(
        update={"response": "Yes.", "response_start_ms": 29_000, "response_end_ms": 29_100}
    )
    told = call.told("turn", typed.wire())
    assert (told["transcript"], told["response"]) == ("my name", "")


def test_an_answer_that_was_cut_off_is_withheld_with_its_turn() -> None:
    call = Call()
    shut(call, 9500, 10_100)
    call.told("turn", across().wire())
    assert call.told("barge_in", {"heard": "Thanks.", "atMs": 10_500})["masked"]
    call.told("turn", across(id="turn_2", start_ms=None, end_ms=None, words=[]).wire())
    assert call.told("barge_in", {"heard": "Thanks.", "atMs": 10_500})["masked"]
    later = across(id="turn_3", response_start_ms=10_200, transcript="", words=[])
    call.told("turn", later.wire())
    assert call.told("barge_in", {"heard": "Thanks.", "atMs": 10_500})["heard"] == "Thanks."


class TestNumbersOverTurns:
    def call(self) -> Call:
        call = Call()
        call.gate.redactor = Redactor(Finder(["card"]))
        return call

    async def test_a_turn_that_ends_in_digits_waits_for_the_next(self) -> None:
        call = self.call()
        for id, said in (("turn_1", "it's 4111 1111"), ("turn_2", "1111 1111"), ("turn_3", "ok")):
            assert call.posted == []
            call.gate.post("turn", Turn(id=id, transcript=said).wire())
        told = [event.data["transcript"] for event in call.posted]
        assert told == ["it's [card]", "[card]", "ok"]

    async def test_it_waits_until_the_call_ends(self) -> None:
        call = self.call()
        call.gate.post("turn", Turn(id="turn_1", transcript="4111 1111 1111 1111").wire())
        call.gate.close()
        assert [event.type for event in call.posted] == ["turn", "redaction.applied"]
        assert call.posted[0].data["transcript"] == "[card]"
        assert call.posted[1].data == {"counts": {"card": 1}}

    async def test_it_does_not_wait_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gate, "HELD_S", 0)
        call = self.call()
        call.gate.post("turn", Turn(id="turn_1", transcript="I want 2").wire())
        assert call.posted == []
        async with asyncio.timeout(5):
            while not call.posted:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert call.posted[0].data["transcript"] == "I want 2"
