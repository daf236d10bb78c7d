"""Tests of worker.timing: when each word was said and heard, and where speech begins and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from livekit import rtc
from livekit.agents import stt
from livekit.agents.language import LanguageCode
from livekit.agents.llm import ChatMessage
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT, TimedString

from tests.worker.timing.test_turn_latency import RATE, START, Sink, frame, level
from worker.timing.heard_audio import HeardAudio
from worker.timing.spoken_audio import SpokenAudio
from worker.timing.timed_words import Timed, timed_words
from worker.timing.turn_clock import POSITION, Origins, TurnClock

pytestmark = pytest.mark.unit


def told(*words: str) -> list[Timed]:
    """Return words of one second each."""
    return [Timed(word, number, number + 1) for number, word in enumerate(words)]


class TestTimedWords:
    def test_the_words_are_those_of_the_text(self) -> None:
        assert timed_words("Five, to eleven.", told("five", " to ", " ", "Eleven")) == [
            ("Five,", 0, 1),
            ("to", 1, 2),
            ("eleven.", 3, 4),
        ]

    def test_a_cut_text_has_no_later_words(self) -> None:
        words = timed_words("We are", told("We", "are", "open", "we", "are", "closed"))
        assert words == [("We", 0, 1), ("are", 1, 2)]

    def test_words_that_are_written_differently_share_the_time(self) -> None:
        words = timed_words("Dial 555 now please", told("dial", "five", "five", "five", "now"))
        assert words == [("Dial", 0, 1), ("555", 1, 4), ("now", 4, 5), ("please", 5, 5)]
        words = timed_words("call me a taxi cab today", told("call", "me", "ataxicab", "today"))
        assert [round(word.start, 2) for word in words[2:5]] == [2, 2.33, 2.67]

    def test_words_of_another_speech_before_it_are_passed_over(self) -> None:
        assert timed_words("Yes please", told("mhm", "okay", "yes", "please")) == [
            ("Yes", 2, 3),
            ("please", 3, 4),
        ]

    def test_times_of_another_text_are_not_taken(self) -> None:
        assert timed_words("What are your hours?", told("good", "morning")) == []
        assert timed_words("Hello", []) == []
        assert timed_words("", told("hello")) == []


class TestSpokenWords:
    async def spoken(self) -> tuple[SpokenAudio, Sink]:
        sink = Sink()
        mouth = SpokenAudio(sink)
        whole = frame(500, -20)
        whole.userdata[USERDATA_TIMED_TRANSCRIPT] = [
            TimedString("One", 0.1, 0.3),
            TimedString("two", 0.35, 0.6),
            TimedString("three", 0.65, 0.9),
            TimedString("sentence without an end", 0.1),
        ]
        await mouth.capture_frame(frame(100, -80))
        await mouth.capture_frame(whole)
        await mouth.capture_frame(frame(300, -20))
        await mouth.capture_frame(frame(200, -80))
        mouth.flush()
        return mouth, sink

    async def test_words_are_heard_where_they_are_played(self) -> None:
        mouth, sink = await self.spoken()
        sink.play((2.0, 0.0, 1.1))
        (found,) = mouth.find(START + 2.0, START + 4.0)
        assert [(w.text, round(w.start - START, 3), round(w.end - START, 3)) for w in found.words]
        assert found.words[0] == ("One", *(pytest.approx(START + at) for at in (2.1, 2.3)))
        assert found.words[2] == ("three", *(pytest.approx(START + at) for at in (2.65, 2.9)))
        assert found.quiet == pytest.approx(START + 2.9)

    async def test_a_pause_moves_the_words_after_it(self) -> None:
        mouth, sink = await self.spoken()
        sink.play((2.0, 0.0, 0.5), (3.0, 0.5, 0.6))
        (found,) = mouth.find(START + 2.0, START + 4.0)
        assert found.words[1] == ("two", *(pytest.approx(START + at) for at in (2.35, 3.1)))
        assert found.words[2] == ("three", *(pytest.approx(START + at) for at in (3.15, 3.4)))
        assert found.quiet == pytest.approx(START + 3.4)

    async def test_a_barge_in_cuts_a_word_and_those_after_it(self) -> None:
        mouth, sink = await self.spoken()
        sink.play((2.0, 0.0, 0.5))
        (found,) = mouth.find(START + 2.0, START + 4.0)
        assert [word.text for word in found.words] == ["One", "two"]
        assert found.words[1].end == pytest.approx(START + 2.5)
        assert found.quiet == pytest.approx(START + 2.5)


class TestSpeechStart:
    def heard(self, *parts: tuple[float, float], burst_s: float = 0.0) -> HeardAudio:
        heard = HeardAudio()
        at = START
        for ms, dbfs in parts:
            for _ in range(round(ms / 20)):
                at += 0.02
                heard.push(level(20, dbfs), RATE, max(at, START + burst_s))
        return heard

    @pytest.mark.parametrize("vad_start", [0.8, 1.0, 1.2])
    def test_the_first_voiced_frame_counts_and_not_when_the_detector_says(
        self, vad_start: float
    ) -> None:
        heard = self.heard((1000, -70), (500, -20))
        assert heard.speech_start(START + vad_start) - START == pytest.approx(1.0, abs=0.001)

    def test_a_click_long_before_is_not_the_start(self) -> None:
        heard = self.heard((800, -70), (20, -20), (300, -70), (400, -20))
        assert heard.speech_start(START + 1.1) - START == pytest.approx(1.12, abs=0.001)

    def test_a_stop_inside_a_word_is_not_the_start(self) -> None:
        heard = self.heard((1000, -70), (60, -20), (100, -70), (300, -20))
        assert heard.speech_start(START + 1.1) - START == pytest.approx(1.0, abs=0.001)

    def test_on_a_noisy_line_the_detector_counts(self) -> None:
        assert self.heard((2000, -30)).speech_start(START + 1.5) == START + 1.5
        assert self.heard((2000, -60)).speech_start(START + 1.5) == START + 1.5

    def test_frames_that_waited_for_a_busy_loop_were_there_before(self) -> None:
        heard = self.heard((1000, -70), (500, -20), burst_s=1.2)
        assert heard.speech_start(START + 1.2) - START == pytest.approx(1.0, abs=0.001)


class Caller:
    """A clock that hears frames of 20 ms, and an STT that locates words in them."""

    def __init__(self) -> None:
        self.now = START
        self.origins: Origins = {}
        self.clock = TurnClock(0.2, origins=self.origins, clock=lambda: self.now)
        self.positions: list[float] = []

    async def hears(self, seconds: float, *, frame_s: float = 0.02) -> None:
        async def audio() -> AsyncIterator[rtc.AudioFrame]:
            for _ in range(round(seconds / frame_s)):
                if frame_s < 0.1:
                    self.now += frame_s
                pcm = np.zeros(round(RATE * frame_s), np.int16)
                yield rtc.AudioFrame(pcm.tobytes(), RATE, 1, len(pcm))

        async for heard in self.clock.listen(audio()):
            self.positions.append(heard.userdata[POSITION])

    def understands(
        self, offset: float, *words: tuple[str, float, float], final: bool = True
    ) -> None:
        kind = stt.SpeechEventType
        located = [
            TimedString(text, start + offset, end + offset, start_time_offset=offset)
            for text, start, end in words
        ]
        data = stt.SpeechData(LanguageCode("en"), " ".join(located), words=located)
        self.clock.hear(
            stt.SpeechEvent(
                kind.FINAL_TRANSCRIPT if final else kind.INTERIM_TRANSCRIPT, alternatives=[data]
            )
        )

    def turn(self, text: str) -> list[tuple[str, float, float]]:
        message = ChatMessage(
            role="user", content=[text], metrics={"stopped_speaking_at": self.now}
        )
        return [
            (word, round(start - START, 3), round(end - START, 3))
            for word, start, end in self.clock.turn_words(message, text)
        ]


class TestCallersWords:
    async def test_words_of_several_finals_are_those_of_the_turn(self) -> None:
        caller = Caller()
        caller.origins[7.5] = 0.0
        await caller.hears(3.0)
        caller.understands(7.5, ("well", 0.5, 0.9), final=False)
        caller.understands(7.5, ("Well,", 0.5, 0.9))
        caller.understands(7.5, ("seven.", 2.0, 2.5))
        assert caller.turn("Well, seven.") == [("Well,", 0.5, 0.9), ("seven.", 2.0, 2.5)]
        assert caller.turn("Well, seven.") == [], "they were said once"

    async def test_after_a_hold_words_are_located_in_the_audio_that_came_after_it(self) -> None:
        caller = Caller()
        caller.origins[0.0] = 0.0
        await caller.hears(2.0)
        await caller.hears(1.0, frame_s=0.2)  # livekit-agents closes the speech with silence
        caller.now += 60.0
        await caller.hears(2.0)
        caller.understands(0.0, ("before", 1.0, 1.4), ("after", 3.5, 3.9))
        assert caller.turn("before after") == [("before", 1.0, 1.4), ("after", 62.5, 62.9)]

    async def test_a_new_connection_has_its_own_origin(self) -> None:
        caller = Caller()
        caller.origins |= {0.1: 0.0, 4.25: 3.0}  # 250 ms late, with audio that waited
        await caller.hears(6.0)
        caller.understands(0.1, ("one", 1.0, 1.5))
        caller.understands(4.25, ("two", 1.0, 1.5))
        assert caller.turn("one two") == [("one", 1.0, 1.5), ("two", 4.0, 4.5)]

    async def test_words_of_an_unknown_connection_or_too_long_ago_have_no_times(self) -> None:
        caller = Caller()
        caller.origins[0.0] = 0.0
        await caller.hears(60.0)
        caller.understands(9.9, ("unknown", 50.0, 50.5))
        caller.understands(0.0, ("old", 1.0, 1.5))
        assert caller.turn("unknown old") == []

    async def test_keys_take_no_words(self) -> None:
        caller = Caller()
        caller.origins[0.0] = 0.0
        await caller.hears(2.0)
        caller.understands(0.0, ("five", 1.0, 1.5))
        assert caller.clock.turn_words(ChatMessage(role="user", content=["five"]), "five") == []
        assert caller.turn("five") == [("five", 1.0, 1.5)]
