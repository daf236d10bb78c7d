"""What a recorder writes, with a line, an output and a file that are given."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import numpy as np
import pytest
from livekit import rtc
from livekit.agents.voice import io

from core.audio import Pcm
from core.models import CallEvent
from core.recordings.plan import RecordingPlan
from core.sound.reports import SoundReport
from worker.endings import Cause
from worker.line import Line, Rates
from worker.privacy.gate import Gate
from worker.privacy.silencer import Silencer
from worker.recording.mixer import Frames, Mixer
from worker.recording.recorder import Recorder
from worker.recording.resample import RATE
from worker.timing.call_clock import CallClock

pytestmark = pytest.mark.unit

ANSWER = 1000.0
PIECE = np.full(RATE // 10, 3000, np.int16)


class Mouth(io.AudioOutput):
    """Plays what a test says was played."""

    def __init__(self) -> None:
        capabilities = io.AudioOutputCapabilities(pause=True)
        super().__init__(label="mouth", capabilities=capabilities, sample_rate=RATE)
        self.now: tuple[float, float, float] | None = None

    def playing(self) -> tuple[float, float, float] | None:
        return self.now

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)

    def flush(self) -> None:
        super().flush()

    def clear_buffer(self) -> None: ...


class FarEnd:
    """The parts of a line that a recorder uses."""

    rates = Rates(speech=RATE, voice=RATE)
    usual_delay_ms = 0.0
    hidden_delay_ms = 0.0, 0.0

    def __init__(self, delay_ms: float | None = 0.0) -> None:
        self.delay_ms = delay_ms
        self.pieces: asyncio.Queue[Pcm] = asyncio.Queue()

    def report_sound(self, to: Callable[[SoundReport], None]) -> None: ...

    async def hear(self, rate: int, piece_ms: int = 20) -> AsyncGenerator[Pcm]:
        while True:
            yield await self.pieces.get()


class Written:
    """A file in memory."""

    def __init__(self, error: OSError | None = None) -> None:
        self.frames: Frames = np.zeros((0, 2), np.int16)
        self.made = 0
        self.closed = False
        self._error = error

    def create(self) -> Written:
        self.made += 1
        return self

    def append(self, frames: Frames) -> None:
        if self._error is not None:
            raise self._error
        self.frames = np.concatenate((self.frames, frames))

    def close(self) -> None:
        self.closed = True


class Call:
    """A call that was answered at ``ANSWER``, and its recorder."""

    def __init__(
        self,
        ago_s: float = 1.0,
        error: OSError | None = None,
        *,
        asks: bool = False,
        redacts: bool = False,
    ) -> None:
        self.answered_at = time.time() - ago_s
        self.clock = CallClock(FarEnd())
        self.posted: list[CallEvent] = []
        self.gate = Gate(self.post, self.clock.now_ms)
        if asks:
            self.gate.shut("consent")
        self.clock.answered(self.answered_at)
        self.line = FarEnd()
        self.file = Written(error)
        self.silencer = Silencer(self.clock.now_ms)
        self.mouth = Mouth()
        self.recorder = Recorder(
            RecordingPlan(key="key"),
            cast(Line, self.line),
            clock=self.clock,
            gate=self.gate,
            post=self.post,
            create=self.file.create,
            silencer=self.silencer if redacts else None,
        )
        self.output = self.recorder.speak(self.mouth)

    def post(self, type: str, data: dict[str, Any]) -> CallEvent:
        self.posted.append(CallEvent(type=type, data=data))
        return self.posted[-1]

    @property
    def told(self) -> list[str]:
        return [event.type for event in self.posted]

    async def speak(self, seconds: float) -> None:
        pcm = np.full(round(seconds * RATE), 5000, np.int16)
        await self.output.capture_frame(rtc.AudioFrame(pcm.tobytes(), RATE, 1, len(pcm)))

    def played(self, at_s: float, offset: float, duration: float) -> None:
        """A stretch was played, from ``at_s`` after the answer."""
        self.mouth.on_playback_progressed(
            started_at=self.answered_at + at_s, offset=offset, duration=duration
        )

    def runs(self, channel: int) -> list[tuple[int, int]]:
        """Return where something is on a channel, in ms."""
        edges = np.diff(np.concatenate(([0], (self.file.frames[:, channel] != 0) * 1, [0])))
        bounds = (np.flatnonzero(edges > 0), np.flatnonzero(edges < 0))
        return [(round(a / 16), round(b / 16)) for a, b in zip(*bounds, strict=True)]


async def test_what_was_played_is_where_it_was_played_and_what_was_cut_off_is_not_there() -> None:
    call = Call(ago_s=3.0)
    call.recorder.start()
    await call.speak(2.0)
    call.played(0.5, 0.0, 0.4)
    call.played(1.2, 0.6, 0.3)  # after a pause, in which 200 ms were dropped
    await call.recorder.finish("caller_hung_up")
    assert call.runs(1) == [(500, 900), (1200, 1500)]
    assert call.told == ["recording.started", "recording.stopped"]
    assert call.file.closed
    assert 3.0 * RATE <= len(call.file.frames) <= 4.0 * RATE


async def test_a_speech_is_written_while_it_is_played() -> None:
    call = Call(ago_s=3.0)
    call.recorder.start()
    await call.speak(10.0)
    call.mouth.now = (call.answered_at + 0.5, 0.0, 2.0)
    await call.recorder.finish("caller_hung_up")
    assert call.runs(1) == [(500, 2500)]


async def test_the_next_speech_does_not_begin_with_the_rest_of_the_last_one() -> None:
    call = Call(ago_s=4.0)
    call.recorder.start()
    await call.speak(1.0)
    call.output.clear_buffer()
    await call.speak(0.2)  # what the session had synthesised already
    call.output.flush()
    call.played(0.2, 0.0, 0.3)
    call.mouth.on_playback_finished(playback_position=0.3, interrupted=True)
    await call.speak(1.0)
    call.output.flush()
    call.played(2.0, 0.0, 1.0)
    await call.recorder.finish("caller_hung_up")
    assert call.runs(1) == [(200, 500), (2000, 3000)]


async def test_the_caller_is_recorded_until_the_end() -> None:
    call = Call()
    call.recorder.start()
    for _ in range(3):
        call.line.pieces.put_nowait(PIECE)
    while not call.line.pieces.empty():  # noqa: ASYNC110
        await asyncio.sleep(0)
    await call.recorder.finish("caller_hung_up")
    ((begin, end),) = call.runs(0)
    assert end - begin == 300


async def test_nothing_is_made_before_the_gate_has_been_open() -> None:
    call = Call(asks=True)
    call.recorder.start()
    await call.speak(0.5)
    call.played(0.1, 0.0, 0.5)
    await call.recorder.finish("caller_hung_up")
    assert (call.file.made, call.told) == (0, [])


async def test_before_consent_is_silence_of_the_same_length() -> None:
    call = Call(ago_s=2.0, asks=True)
    call.recorder.start()
    await call.speak(3.0)
    call.mouth.now = (call.answered_at, 0.0, 3.0)
    call.gate.open("consent")
    assert call.told == ["recording.started"]
    await asyncio.sleep(0.01)  # something has to be kept
    await call.recorder.finish("caller_hung_up")
    assert len(call.file.frames) >= 2.0 * RATE
    assert not call.file.frames[: 2 * RATE].any()


async def test_on_hold_nothing_is_kept() -> None:
    call = Call()
    call.clock.answered(time.time() - 0.1)
    call.recorder.hold(True)
    call.clock.answered(call.answered_at)
    call.recorder.start()
    await call.speak(0.6)
    call.played(0.0, 0.0, 0.6)
    await call.recorder.finish("caller_hung_up")
    assert call.file.frames[: RATE // 20].any()
    assert not call.file.frames[RATE // 2 :].any()


@pytest.mark.parametrize(
    ("cause", "reason"), [("transfer_ended", "call_ended"), ("worker_stopped", "worker_stopped")]
)
async def test_a_human_is_recorded_in_the_agents_place(cause: Cause, reason: str) -> None:
    call, human = Call(ago_s=2.0), FarEnd()
    call.recorder.start()
    await call.speak(5.0)
    call.played(0.0, 0.0, 0.3)
    call.clock.answered(time.time() - 0.6)
    call.recorder.hold(True)
    call.clock.answered(call.answered_at)
    call.recorder.join(human.hear)
    call.clock.answered(call.answered_at - 0.2)  # a moment later, also for what was played
    call.played(2.1, 0.3, 0.2)  # the agent is not on the call any more
    human.pieces.put_nowait(PIECE)
    call.line.pieces.put_nowait(PIECE)
    while not (human.pieces.empty() and call.line.pieces.empty()):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await call.recorder.finish(cause)
    agents, humans = call.runs(1)
    assert agents == (200, 500) and humans[0] > 2000
    assert [end - begin for begin, end in (humans, *call.runs(0))] == [100, 100]
    assert call.posted[-1].data == {"reason": reason}


async def test_whether_it_may_go_on() -> None:
    call = Call(asks=True)
    assert not call.recorder.may_go_on
    call.recorder.start()
    assert not call.recorder.may_go_on, "nobody has consented"
    call.gate.open("consent")
    call.gate.shut("paused")
    assert call.recorder.may_go_on
    await call.recorder.finish("caller_hung_up")
    assert not call.recorder.may_go_on


async def test_a_recording_that_ends_with_a_transfer_says_so() -> None:
    call = Call()
    call.recorder.start()
    await call.recorder.finish("handed_over")
    assert call.posted[-1].data == {"reason": "transfer"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(errno.ENOSPC, "full"), "disk_full"), (OSError(errno.EIO, "broken"), "error")],
)
async def test_a_broken_disk_does_not_touch_the_call(error: OSError, reason: str) -> None:
    call = Call(error=error)
    call.recorder.start()
    await call.recorder.finish("caller_hung_up")
    await call.speak(0.1)  # still passes
    assert call.posted[1].type == "recording.failed"
    assert call.posted[1].data == {"reason": reason}


async def test_what_redaction_silences_is_not_written() -> None:
    call = Call(ago_s=3.0, redacts=True)
    call.recorder.start()
    await call.speak(2.0)
    call.silencer.silence(1000, 1200)
    call.played(0.5, 0.0, 2.0)
    await call.recorder.finish("caller_hung_up")
    assert call.runs(1) == [(500, 900), (1300, 2500)]


async def test_what_the_caller_said_last_is_not_written_if_nobody_knows_it() -> None:
    call = Call(ago_s=3.0, redacts=True)
    call.recorder.start()
    call.silencer.busy("caller", True)
    await call.speak(3.0)
    call.played(0.0, 0.0, 3.0)
    await call.recorder.finish("caller_hung_up")
    ((begin, end),) = call.runs(1)
    assert begin == 0 and end == pytest.approx(2000, abs=100)


def mixer(spans: list[tuple[int, int | None]], delay_ms: float = 0.0) -> Mixer:
    clock = CallClock(FarEnd(delay_ms))
    clock.answered(ANSWER)
    return Mixer(clock, RATE, lambda: spans)


def test_a_shut_span_is_silent_on_both_channels_and_changes_no_length() -> None:
    mixed = mixer([(200, 300), (900, None)])
    for index in range(10):
        mixed.heard(PIECE, ANSWER + (index + 1) / 10)
        mixed.played(ANSWER + index / 10, PIECE, False)
    mixed.settle(ANSWER + 9)
    frames, keeps = mixed.take(RATE)
    assert keeps and frames.shape == (RATE, 2)
    assert not frames[RATE * 2 // 10 : RATE * 3 // 10].any()
    assert not frames[RATE * 9 // 10 :].any()
    assert frames[10 : RATE * 2 // 10 - 10].all()
    assert frames[RATE * 3 // 10 + 10 : RATE * 9 // 10 - 10].all()


def test_a_shut_span_takes_with_it_what_was_on_its_way() -> None:
    mixed = mixer([(200, 300)], delay_ms=100)
    mixed.played(ANSWER + 0.29, PIECE, False)  # it left before the end, and was heard after it
    mixed.settle(ANSWER + 9)
    frames, _ = mixed.take(RATE)
    assert not frames[: RATE * 35 // 100].any()


def test_half_of_the_delay_is_between_the_channels() -> None:
    mixed = mixer([], delay_ms=100)
    mixed.heard(PIECE, ANSWER + 0.5)
    mixed.played(ANSWER + 0.5, PIECE, False)
    mixed.settle(ANSWER + 9)
    frames, _ = mixed.take(RATE)
    assert [int(np.flatnonzero(frames[:, channel])[0]) // 16 for channel in (0, 1)] == [350, 550]


def test_the_caller_hears_the_human_when_we_do() -> None:
    mixed = mixer([], delay_ms=100)
    mixed.heard_human(PIECE, ANSWER + 0.5)
    mixed.settle(ANSWER + 9)
    frames, _ = mixed.take(RATE)
    assert not frames[:, 0].any()
    assert int(np.flatnonzero(frames[:, 1])[0]) // 16 == 400


def test_a_redacted_span_is_silent_on_both_channels() -> None:
    """Also if its audio comes after the span is known."""
    mixed = mixer([])
    spans = [(20, 60), (150, 160)]
    mixed.heard(PIECE, ANSWER + 0.1)
    mixed.played(ANSWER, PIECE, False)
    mixed.settle(ANSWER + 9)
    frames, _ = mixed.take(RATE // 20, spans)
    frames = np.concatenate((frames, mixed.take(RATE // 5, spans)[0]))
    assert not frames[320:960].any()
    assert frames[:320].all() and frames[960:1600].all()
