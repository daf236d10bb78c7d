"""Tests of worker.timing: a turn's latency, from positions in the audio, in parts that add up."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
from livekit import rtc
from livekit.agents import FunctionToolsExecutedEvent
from livekit.agents.llm import ChatMessage, FunctionCall, FunctionCallOutput
from livekit.agents.types import USERDATA_TTS_STARTED_TIME
from livekit.agents.voice import io
from livekit.rtc._proto import stats_pb2 as stats

from core.audio import Pcm
from core.sound.media_delay import RoomDelay
from worker.timing.heard_audio import HeardAudio
from worker.timing.spoken_audio import SpokenAudio
from worker.timing.turn_clock import TurnClock
from worker.timing.turn_parts import TurnEnd, whole
from worker.timing.voiced import VoicedFrames, is_voiced

pytestmark = pytest.mark.unit

RATE = 16_000
START = 1_700_000_000.0  # Unix seconds


def level(ms: float, dbfs: float, rate: int = RATE) -> Pcm:
    """Return a constant signal of this level."""
    return np.full(round(ms * rate / 1000), round(32768 * 10 ** (dbfs / 20)), np.int16)


def frame(ms: float, dbfs: float, **userdata: float) -> rtc.AudioFrame:
    pcm = level(ms, dbfs, 24_000)
    return rtc.AudioFrame(pcm.tobytes(), 24_000, 1, len(pcm), userdata=userdata)


class TestVoice:
    def test_a_frame_of_45_dbfs_is_voice(self) -> None:
        assert is_voiced(level(20, -44.9))
        assert not is_voiced(level(20, -45.1))
        assert not is_voiced(level(20, -120))
        assert not is_voiced(level(0, -20))

    @pytest.mark.parametrize("piece_ms", [7, 20, 50, 1000])
    def test_the_first_voice_is_found_on_frames_whatever_the_pieces(self, piece_ms: int) -> None:
        pcm = np.concatenate((level(130, -70), level(400, -20)))
        voice = VoicedFrames(RATE)
        step = RATE * piece_ms // 1000
        for start in range(0, len(pcm), step):
            voice.feed(pcm[start : start + step])
        assert voice.first == 0.12

    def test_silence_has_none(self) -> None:
        voice = VoicedFrames(RATE)
        voice.feed(level(500, -60))
        assert voice.first is None


class TestHeardAudio:
    def heard(self, *parts: tuple[float, float]) -> HeardAudio:
        """Hear ``(ms, dbfs)`` in 20 ms frames; each arrives when its last sample is spoken."""
        heard = HeardAudio()
        at = START
        for ms, dbfs in parts:
            for _ in range(round(ms / 20)):
                at += 0.02
                heard.push(level(20, dbfs), RATE, at)
        return heard

    def test_the_last_voiced_frame_counts_and_not_when_the_detector_says(self) -> None:
        heard = self.heard((1000, -20), (300, -70))
        for vad_end in (START + 0.9, START + 1.1):
            end = heard.speech_end(vad_end=vad_end, before=START + 1.3)
            assert end - START == pytest.approx(1.0, abs=0.001)

    def test_where_noise_is_as_loud_as_voice_the_detector_counts(self) -> None:
        heard = self.heard((1000, -20), (300, -40))
        assert heard.speech_end(vad_end=START + 1.05, before=START + 1.3) == START + 1.05

    def test_where_there_is_no_voice_the_detector_counts(self) -> None:
        heard = self.heard((1300, -50))
        assert heard.speech_end(vad_end=START + 1.05, before=START + 1.3) == START + 1.05
        assert HeardAudio().speech_end(vad_end=START, before=START + 0.2) == START

    def test_a_sound_long_after_the_words_is_not_their_end(self) -> None:
        heard = self.heard((1000, -20), (400, -70), (40, -30), (200, -70))
        end = heard.speech_end(vad_end=START + 1.0, before=START + 1.6)
        assert end - START == pytest.approx(1.0, abs=0.001)

    def test_silence_that_the_framework_makes_up_is_not_of_the_line(self) -> None:
        heard = self.heard((1000, -20), (300, -70))
        for _ in range(10):
            heard.push(level(200, -120), RATE, START + 1.31)
        end = heard.speech_end(vad_end=START + 1.1, before=START + 1.5)
        assert end - START == pytest.approx(1.0, abs=0.001)

    def test_frames_that_waited_for_a_busy_loop_were_there_before(self) -> None:
        heard = HeardAudio()
        stalled_until = START + 1.15
        for number in range(1, 66):
            at = START + number * 0.02
            if START + 0.95 < at < stalled_until:
                at = stalled_until
            heard.push(level(20, -20 if number <= 50 else -70), RATE, at)
        end = heard.speech_end(vad_end=START + 1.1, before=START + 1.3)
        assert end - START == pytest.approx(1.0, abs=0.001)


class Sink(io.AudioOutput):
    """An output whose playback the test reports."""

    def __init__(self) -> None:
        super().__init__(label="Sink", capabilities=io.AudioOutputCapabilities(pause=True))

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)

    def clear_buffer(self) -> None:
        self.on_playback_finished(playback_position=0.0, interrupted=True)

    def flush(self) -> None:
        super().flush()

    def play(self, *runs: tuple[float, float, float]) -> None:
        """Report the playback of each ``(began, offset, duration)``, then its end."""
        self.on_playback_started(created_at=START + runs[0][0])
        for began, offset, duration in runs:
            self.on_playback_progressed(started_at=START + began, offset=offset, duration=duration)
        self.on_playback_finished(playback_position=1.0, interrupted=False)


class TestSpokenAudio:
    async def test_the_silence_before_the_voice_is_skipped(self) -> None:
        spoken, sink = make_spoken()
        await spoken.capture_frame(frame(60, -80))
        await spoken.capture_frame(frame(500, -20))
        spoken.flush()
        sink.play((2.0, 0.0, 0.56))
        (found,) = spoken.find(START + 2.0, START + 3.0)
        assert found.voiced is not None
        assert found.voiced - START == pytest.approx(2.06, abs=0.001)

    async def test_a_gap_before_the_voice_counts(self) -> None:
        spoken, sink = make_spoken()
        await spoken.capture_frame(frame(60, -80))
        await spoken.capture_frame(frame(500, -20))
        spoken.flush()
        sink.play((2.0, 0.0, 0.04), (2.3, 0.04, 0.52))
        (found,) = spoken.find(START + 2.0, START + 3.0)
        assert found.voiced is not None
        assert found.voiced - START == pytest.approx(2.32, abs=0.001)

    async def test_what_was_cut_before_its_voice_has_none(self) -> None:
        spoken, sink = make_spoken()
        await spoken.capture_frame(frame(60, -80))
        await spoken.capture_frame(frame(500, -20))
        spoken.flush()
        sink.play((2.0, 0.0, 0.04))
        (found,) = spoken.find(START + 2.0, START + 3.0)
        assert found.voiced is None
        assert found.quiet is None

    async def test_each_segment_is_found_by_its_beginning(self) -> None:
        spoken, sink = make_spoken()
        for began in (1.0, 5.0):
            await spoken.capture_frame(frame(100, -20))
            spoken.flush()
            sink.play((began, 0.0, 0.1))
        assert [len(spoken.find(START + at, START + at + 1)) for at in (1.0, 3.0, 5.0)] == [1, 0, 1]
        assert len(spoken.find(START + 1.0, START + 6.0)) == 2, "a message of two segments"

    async def test_when_the_tts_was_given_the_words(self) -> None:
        spoken, sink = make_spoken()
        given = time.perf_counter() - 0.5
        await spoken.capture_frame(frame(20, -20, **{USERDATA_TTS_STARTED_TIME: given}))
        spoken.flush()
        sink.play((0.0, 0.0, 0.02))
        (found,) = spoken.find(START, START + 0.1)
        assert found.text is not None
        assert 0.49 < found.captured - found.text < 10


def make_spoken() -> tuple[SpokenAudio, Sink]:
    sink = Sink()
    return SpokenAudio(sink), sink


def turn_end(*, quiet: float, decided: float, final: float | None = 0.1) -> TurnEnd:
    """Return a turn's end. The times are in seconds from the end of the caller's speech."""
    return TurnEnd(START, START + quiet, None if final is None else START + final, START + decided)


class TestParts:
    def test_a_turn_adds_up(self) -> None:
        end = turn_end(quiet=0.23, decided=0.23)
        parts = whole(end, text=START + 0.53, voiced=START + 0.68, transport_ms=88.4)
        assert parts == {
            "endpointing": 230.0,
            "stt": 0.0,
            "llm": 300.0,
            "tts": 150.0,
            "transport": 88.4,
            "total": 768.4,
        }

    def test_the_total_is_the_sum_of_what_is_shown(self) -> None:
        end = turn_end(quiet=0.20004, decided=0.20004)
        parts = whole(end, text=START + 0.45008, voiced=START + 0.60012)
        assert sum(v for k, v in parts.items() if k != "total") == pytest.approx(parts["total"])

    @pytest.mark.parametrize(
        ("final", "decided", "endpointing", "stt"),
        [
            (0.15, 0.23, 230.0, 0.0),  # within the silence
            (0.50, 0.51, 240.0, 270.0),  # beyond it
            (0.50, 0.80, 530.0, 270.0),  # and an end-of-turn model decided even later
            (None, 0.51, 510.0, 0.0),  # unknown
        ],
    )
    def test_waiting_for_the_transcript_counts_beyond_the_silence(
        self, final: float | None, decided: float, endpointing: float, stt: float
    ) -> None:
        parts = turn_end(quiet=0.23, decided=decided, final=final).parts()
        assert parts == {"endpointing": endpointing, "stt": stt}

    def test_an_answer_begun_before_the_decision_costs_what_remains_of_it(self) -> None:
        end = turn_end(quiet=0.23, decided=0.23)
        parts = whole(end, text=START + 0.2, voiced=START + 0.33)
        assert (parts["llm"], parts["tts"]) == (0.0, 100.0)

    def test_tools_before_the_first_words_count_as_tools(self) -> None:
        end = turn_end(quiet=0.2, decided=0.2)
        ran = [(START - 9, START - 8), (START + 0.5, START + 1.3), (START + 5, START + 6)]
        parts = whole(end, text=START + 1.6, voiced=START + 1.7, tools=ran)
        assert (parts["llm"], parts["tools"], parts["tts"]) == (600.0, 800.0, 100.0)
        assert parts["total"] == 1700.0

    def test_no_part_is_negative(self) -> None:
        end = TurnEnd(START, START + 0.3, START - 0.2, START - 0.1)
        parts = whole(end, text=START - 0.5, voiced=START - 0.05, transport_ms=-3)
        assert min(parts.values()) == 0.0


class TestTurnClock:
    async def test_a_turn_from_its_frames_to_its_parts(self) -> None:
        now = START
        clock = TurnClock(0.2, lambda: 60.0, clock=lambda: now)

        async def audio() -> AsyncIterator[rtc.AudioFrame]:
            nonlocal now
            for number in range(1, 64):
                now = START + number * 0.02
                pcm = level(20, -20 if number <= 50 else -70)
                yield rtc.AudioFrame(pcm.tobytes(), RATE, 1, len(pcm))

        assert len([None async for _ in clock.listen(audio())]) == 63
        now = START + 1.1
        clock.understood()
        now = START + 1.25
        clock.quiet()
        sink = Sink()
        mouth = clock.speak(sink)
        now = START + 1.65
        await mouth.capture_frame(frame(40, -80))
        await mouth.capture_frame(frame(100, -20))
        mouth.flush()
        sink.play((1.66, 0.0, 0.14))
        # A tool of an earlier turn.
        call = FunctionCall(call_id="1", name="look", arguments="{}", created_at=START - 5)
        clock.tools_ran(
            FunctionToolsExecutedEvent(
                function_calls=[call],
                function_call_outputs=[FunctionCallOutput(call_id="1", output="", is_error=False)],
                created_at=START - 4,
            )
        )
        caller = ChatMessage(role="user", content=["Hi"])
        caller.metrics = {"stopped_speaking_at": START + 1.04, "end_of_turn_delay": 0.22}
        agent = ChatMessage(role="assistant", content=["Hello"])
        agent.metrics = {
            "started_speaking_at": START + 1.66,
            "stopped_speaking_at": START + 1.80,
            "tts_node_ttfb": 0.09,
        }

        end = clock.turn_end(caller)
        (spoken,) = clock.spoken(agent)
        assert end is not None
        assert clock.parts(end, agent, spoken) == {
            "endpointing": 260.0,
            "stt": 0.0,
            "llm": 300.0,
            "tts": 140.0,
            "transport": 60.0,
            "total": 760.0,
        }

    def test_keys_have_no_end_of_speech(self) -> None:
        clock = TurnClock(0.2)
        assert clock.turn_end(ChatMessage(role="user", content=["[5]"])) is None
        assert clock.spoken(ChatMessage(role="assistant", content=["Five"])) == []


class TestRoomDelay:
    def test_half_a_trip_each_way_and_the_jitter_buffer_since_the_last_look(self) -> None:
        delay = RoomDelay()
        assert delay.ms is None
        delay.update([pair(0.010), pair(0.020), audio_in(waited_s=480.0, emitted=4_800)])
        assert delay.ms == pytest.approx(115)
        delay.update([pair(0.010), pair(0.020), audio_in(waited_s=480.0 + 1_440, emitted=52_800)])
        assert delay.ms == pytest.approx(45)

    def test_a_room_without_audio_has_a_network_only(self) -> None:
        delay = RoomDelay()
        delay.update([pair(0.008)])
        assert delay.ms == pytest.approx(8)


def pair(trip_s: float) -> stats.RtcStats:
    made = stats.RtcStats()
    made.candidate_pair.candidate_pair.nominated = True
    made.candidate_pair.candidate_pair.current_round_trip_time = trip_s
    return made


def audio_in(*, waited_s: float, emitted: int) -> stats.RtcStats:
    made = stats.RtcStats()
    made.inbound_rtp.stream.kind = "audio"
    made.inbound_rtp.inbound.jitter_buffer_delay = waited_s
    made.inbound_rtp.inbound.jitter_buffer_emitted_count = emitted
    return made
