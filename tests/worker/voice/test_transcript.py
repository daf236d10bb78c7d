"""Tests of worker.voice.transcript: speech becomes turns: once, complete, in ms from the answer."""

from __future__ import annotations

from typing import Any

import pytest
from livekit.agents.llm import ChatMessage

from worker.timing.call_clock import CallClock
from worker.timing.spoken_audio import Spoken
from worker.timing.timed_words import Timed
from worker.timing.turn_clock import TurnClock
from worker.timing.turn_parts import TurnEnd
from worker.voice.transcript import Transcript

pytestmark = pytest.mark.unit

ANSWERED = 1_700_000_000.0


class Timeline:
    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, Any]]] = []

    def post(self, type: str, data: dict[str, Any]) -> None:
        self.posts.append((type, data))

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The turns as last posted, in order of appearance."""
        return list({data["id"]: data for type, data in self.posts if type == "turn"}.values())

    def of(self, type: str) -> list[dict[str, Any]]:
        return [data for posted, data in self.posts if posted == type]


class Clock(TurnClock):
    """A clock whose times the test sets, instead of audio."""

    def __init__(self) -> None:
        super().__init__(endpointing_s=0.2)
        self.ended: TurnEnd | None = None
        self.voiced: dict[str, Spoken] = {}
        self.words: list[Timed] = []

    def turn_end(self, message: ChatMessage) -> TurnEnd | None:
        return self.ended

    def spoken(self, message: ChatMessage) -> list[Spoken]:
        spoken = self.voiced.get(message.text_content or "")
        return [] if spoken is None else [spoken]

    def turn_words(self, message: ChatMessage, text: str) -> list[Timed]:
        return self.words

    def ends(self, at: float) -> None:
        """End the caller's next turn: silence from ``at`` on, decided 0.25 s later."""
        at += ANSWERED
        self.ended = TurnEnd(speech_end=at, quiet=at + 0.25, final=at + 0.1, decided=at + 0.25)

    def speaks(self, text: str, *, asked: float, voiced: float) -> None:
        """Set when the TTS gets the words, and when its first voiced sample leaves."""
        began = ANSWERED + voiced - 0.02
        self.voiced[text] = Spoken(began, began - 0.01, ANSWERED + asked, ANSWERED + voiced)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Way:
    """A line's delay."""

    usual_delay_ms = 0.0
    hidden_delay_ms = 0.0, 0.0

    def __init__(self, delay_ms: float | None = None) -> None:
        self.delay_ms = delay_ms


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


@pytest.fixture
def transcript(timeline: Timeline, clock: Clock) -> Transcript:
    call = CallClock(Way())
    call.answered(ANSWERED)
    return Transcript(timeline.post, clock, call)


def user(text: str, start: float = 0.0, end: float = 1.0, **metrics: float) -> ChatMessage:
    return ChatMessage(
        role="user",
        content=[text],
        transcript_confidence=0.93,
        created_at=ANSWERED + end + 0.4,
        metrics={
            "started_speaking_at": ANSWERED + start,
            "stopped_speaking_at": ANSWERED + end,
            **metrics,
        },
    )


def agent(
    text: str, start: float = 2.0, end: float = 3.0, *, interrupted: bool = False, **metrics: float
) -> ChatMessage:
    return ChatMessage(
        role="assistant",
        content=[text],
        interrupted=interrupted,
        created_at=ANSWERED + start,
        metrics={
            "started_speaking_at": ANSWERED + start,
            "stopped_speaking_at": ANSWERED + end,
            **metrics,
        },
    )


def at(*seconds: float) -> list[float]:
    return [ANSWERED + second for second in seconds]


def heard(began: float, words: tuple[Timed, ...]) -> Spoken:
    """Return a segment that is voiced from its first word to its last."""
    began += ANSWERED
    return Spoken(began, began, None, words[0].start, words[-1].end, words)


def test_a_greeting_is_a_turn_without_a_transcript(
    transcript: Transcript, timeline: Timeline
) -> None:
    transcript.add(agent("Hello, how can I help?", 0.08, 2.5), unasked=True)
    (turn,) = timeline.turns
    assert (turn["transcript"], turn["response"]) == ("", "Hello, how can I help?")
    assert (turn["responseStartMs"], turn["responseEndMs"]) == (80, 2500)
    assert (turn["startMs"], turn["endMs"]) == (None, None)


def test_a_turn_is_posted_when_heard_and_again_when_answered(
    transcript: Transcript, timeline: Timeline
) -> None:
    transcript.add(user("What are your hours?", 3.0, 4.25))
    transcript.add(agent("Five to eleven.", 4.9, 6.0))
    first, second = timeline.of("turn")
    assert first["id"] == second["id"]
    assert (first["transcript"], first["response"]) == ("What are your hours?", "")
    assert (second["transcript"], second["response"]) == ("What are your hours?", "Five to eleven.")
    assert (second["startMs"], second["endMs"]) == (3000, 4250)
    assert (second["responseStartMs"], second["responseEndMs"]) == (4900, 6000)
    assert second["confidence"] == 0.93


def test_a_turn_takes_its_times_from_the_audio(
    transcript: Transcript, timeline: Timeline, clock: Clock
) -> None:
    clock.ends(0.98)
    clock.speaks("Hi.", asked=1.53, voiced=1.71)
    transcript.add(user("Hi.", 0.0, 1.04))
    transcript.add(agent("Hi.", 1.69, 3.0))
    (turn,) = timeline.turns
    assert (turn["endMs"], turn["responseStartMs"], turn["responseEndMs"]) == (980, 1710, 3000)
    assert turn["latency"] == {
        "endpointing": 250.0,
        "stt": 0.0,
        "llm": 300.0,
        "tts": 180.0,
        "total": 730.0,
    }


def test_an_answer_around_a_tool_call_is_one_response(
    transcript: Transcript, timeline: Timeline, clock: Clock
) -> None:
    clock.ends(1.0)
    clock.speaks("Let me look.", asked=1.5, voiced=2.0)
    clock.speaks("Yes, at eight.", asked=3.5, voiced=4.0)
    transcript.add(user("Is a table free?"))
    transcript.add(agent("Let me look.", 2.0, 3.0))
    transcript.add(agent("Yes, at eight.", 4.0, 5.0))
    (turn,) = timeline.turns
    assert turn["response"] == "Let me look. Yes, at eight."
    assert (turn["responseStartMs"], turn["responseEndMs"]) == (2000, 5000)
    assert turn["latency"]["total"] == 1000.0, "the caller's wait ended with the first words"


def test_an_answer_whose_first_words_were_not_timed_is_not_timed_by_its_later_ones(
    transcript: Transcript, timeline: Timeline, clock: Clock
) -> None:
    clock.ends(1.0)
    clock.speaks("Yes, at eight.", asked=3.5, voiced=4.0)
    transcript.add(user("Is a table free?"))
    transcript.add(agent("Let me look.", 2.0, 3.0))
    transcript.add(agent("Yes, at eight.", 4.0, 5.0))
    assert timeline.turns[0]["latency"] == {}


def test_barge_in(transcript: Transcript, timeline: Timeline) -> None:
    transcript.add(user("Hours?"))
    transcript.add(agent("We are open from", 2.0, 3.5, interrupted=True))
    transcript.add(user("Just today, please.", 3.2, 4.5))
    cut, new = timeline.turns
    assert (cut["response"], cut["interrupted"]) == ("We are open from", True)
    assert (new["transcript"], new["response"]) == ("Just today, please.", "")
    assert timeline.of("barge_in") == [{"atMs": 3500, "heard": "We are open from"}]


def test_an_answer_cut_by_the_hang_up_is_no_barge_in(
    transcript: Transcript, timeline: Timeline
) -> None:
    transcript.add(user("Hours?"))
    transcript.hung_up()
    transcript.add(agent("We are", interrupted=True))
    assert timeline.turns[0]["response"] == "We are"
    assert timeline.of("barge_in") == []


def test_what_nobody_heard_is_not_in_the_transcript(
    transcript: Transcript, timeline: Timeline
) -> None:
    transcript.add(user("Hours?"))
    transcript.add(agent("", interrupted=True))
    assert timeline.turns[0]["response"] == ""
    assert len(timeline.of("turn")) == 1


def test_unasked_words_do_not_answer_the_last_turn(
    transcript: Transcript, timeline: Timeline
) -> None:
    transcript.add(user("Hours?"))
    transcript.add(agent("I am sorry, something went wrong."), unasked=True)
    asked, unasked = timeline.turns
    assert asked["response"] == ""
    assert unasked["transcript"] == ""


def test_keys_have_no_speaking_times(transcript: Transcript, timeline: Timeline) -> None:
    pressed = ChatMessage(
        role="user", content=["[The caller pressed 5]"], created_at=ANSWERED + 7.0
    )
    transcript.add(pressed)
    (turn,) = timeline.turns
    assert (turn["startMs"], turn["endMs"]) == (7000, 7000)


def test_words_and_times_are_on_the_clock_of_the_call(timeline: Timeline, clock: Clock) -> None:
    """The line has 100 ms each way: the caller spoke earlier, and hears later."""
    call = CallClock(Way(200.0))
    call.answered(ANSWERED)
    transcript = Transcript(timeline.post, clock, call)
    clock.words = [Timed("Your", *at(1.0, 1.2)), Timed("hours?", *at(1.25, 1.9))]
    clock.ends(1.9)
    transcript.add(user("Your hours?", 1.0, 2.0))
    clock.voiced["Five to"] = heard(
        2.5,
        (Timed("Five", *at(2.6, 2.8)), Timed("to", *at(2.9, 3.1))),
    )
    transcript.add(agent("Five to", 2.5, 3.3, interrupted=True))
    clock.voiced["Sorry."] = heard(4.0, (Timed("Sorry.", *at(4.1, 4.5)),))
    transcript.add(agent("Sorry.", 4.0, 5.0))
    (turn,) = timeline.turns
    assert (turn["startMs"], turn["endMs"]) == (900, 1800)
    assert turn["words"] == [
        {"text": "Your", "startMs": 900, "endMs": 1100},
        {"text": "hours?", "startMs": 1150, "endMs": 1800},
    ]
    assert (turn["responseStartMs"], turn["responseEndMs"]) == (2700, 4600)
    assert turn["responseWords"] == [
        {"text": "Five", "startMs": 2700, "endMs": 2900},
        {"text": "to", "startMs": 3000, "endMs": 3200},
        {"text": "Sorry.", "startMs": 4200, "endMs": 4600},
    ]


def test_words_without_times_of_the_provider(transcript: Transcript, timeline: Timeline) -> None:
    transcript.add(user("Hours?"))
    transcript.add(agent("Five to eleven."))
    assert (timeline.turns[0]["words"], timeline.turns[0]["responseWords"]) == ([], [])


def test_instructions_are_not_said(transcript: Transcript, timeline: Timeline) -> None:
    transcript.add(ChatMessage(role="system", content=["Be nice."]))
    assert timeline.posts == []


def test_sentences_that_the_tts_ran_together_are_parted(
    timeline: Timeline, transcript: Transcript
) -> None:
    transcript.add(agent("Free at seven,or eight.Press one!Or see U.S.A. at www.example.com.Bye."))
    assert timeline.turns[0]["response"] == (
        "Free at seven, or eight. Press one! Or see U.S.A. at www.example.com. Bye."
    )
