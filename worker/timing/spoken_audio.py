"""Finds when the agent's voice left the worker, from the sent audio.

Neither the start of the TTS's audio, which is silence, nor its entry into LiveKit's queue is the
agent's first word. ``SpokenAudio`` sits in front of the session's audio output and finds the first
voiced frame of each segment. The output's own playback reports date that frame.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from livekit import rtc
from livekit.agents.types import USERDATA_TTS_STARTED_TIME
from livekit.agents.voice import io

from worker._private import drop_queued
from worker.timing.voiced import FirstVoice

_KEPT = 256  # segments; each phrase of a webhook's reply is one, and is looked up after the last


@dataclass(frozen=True, slots=True)
class Spoken:
    """The times of one played segment, all in Unix seconds.

    ``began`` is the start of playback as the output reports it; livekit-agents dates the message
    with the same value. ``captured`` is when the first frame reached the output. ``text`` is when
    the TTS was given the first words; None if it does not report that. ``voiced`` is when the
    first voiced sample left the queue to the room; None if it never did.
    """

    began: float
    captured: float
    text: float | None
    voiced: float | None


@dataclass(slots=True)
class _Segment:
    voice: FirstVoice
    captured: float
    text: float | None
    began: float | None = None
    # The played runs: start time (Unix seconds), offset in the segment (s), duration (s).
    runs: list[tuple[float, float, float]] = field(default_factory=list)

    def done(self) -> Spoken | None:
        if self.began is None:
            return None
        return Spoken(self.began, self.captured, self.text, self._voiced())

    def _voiced(self) -> float | None:
        position = self.voice.position
        if position is None:
            return None
        for began, offset, duration in self.runs:
            if offset <= position < offset + duration:
                return began + position - offset
        return None


class SpokenAudio(io.AudioOutput):
    """Passes everything on to ``sink``. A segment lasts until its playback has finished."""

    def __init__(self, sink: io.AudioOutput, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(
            label="SpokenAudio",
            next_in_chain=sink,
            sample_rate=sink.sample_rate,
            capabilities=io.AudioOutputCapabilities(pause=True),
        )
        assert self.next_in_chain is not None  # livekit-agents may put something in between
        self._next = self.next_in_chain
        self._clock = clock
        self._segment: _Segment | None = None
        self._spoken: deque[Spoken] = deque(maxlen=_KEPT)
        self.on("playback_started", self._started)
        self.on("playback_progressed", self._progressed)
        self.on("playback_finished", self._finished)

    def find(self, began: float) -> Spoken | None:
        """Return the finished segment whose playback ``began`` at that time."""
        return next((spoken for spoken in self._spoken if spoken.began == began), None)

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        segment = self._segment
        if segment is None:
            now = self._clock()
            segment = self._segment = _Segment(
                FirstVoice(frame.sample_rate), now, _given_text(frame, now)
            )
        if segment.voice.position is None:
            segment.voice.feed(np.frombuffer(frame.data, np.int16))
        await self._next.capture_frame(frame)
        await super().capture_frame(frame)

    def flush(self) -> None:
        super().flush()
        self._next.flush()

    def clear_buffer(self) -> None:
        self._next.clear_buffer()

    def pause(self) -> None:
        super().pause()
        drop_queued(self._next)

    def _started(self, event: io.PlaybackStartedEvent) -> None:
        if self._segment is not None and self._segment.began is None:
            self._segment.began = event.created_at

    def _progressed(self, event: io.PlaybackProgressedEvent) -> None:
        if self._segment is not None:
            self._segment.runs.append((event.started_at, event.offset, event.duration))

    def _finished(self, _: io.PlaybackFinishedEvent) -> None:
        segment, self._segment = self._segment, None
        if segment is not None and (spoken := segment.done()) is not None:
            self._spoken.append(spoken)


def _given_text(frame: rtc.AudioFrame, now: float) -> float | None:
    """Return when the TTS was given the words of ``frame``, which is stored by another clock."""
    started: float | None = frame.userdata.get(USERDATA_TTS_STARTED_TIME)
    return None if started is None else now - (time.perf_counter() - started)
