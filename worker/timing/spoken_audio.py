"""Finds when the agent's voice left the worker, from the sent audio.

Neither the start of the TTS's audio, which is silence, nor its entry into LiveKit's queue is the
agent's first word. ``SpokenAudio`` sits in front of the session's audio output and finds the voiced
frames of each segment, and the words that the TTS located in it. The output's own playback reports
date them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from livekit import rtc
from livekit.agents.types import (
    USERDATA_TIMED_TRANSCRIPT,
    USERDATA_TTS_STARTED_TIME,
    TimedString,
)
from livekit.agents.utils import is_given
from livekit.agents.voice import io

from worker._private import drop_queued
from worker.timing.passing_output import PassingOutput
from worker.timing.timed_words import Timed
from worker.timing.voiced import VoicedFrames

_KEPT = 256  # segments; each phrase of a webhook's reply is one, and is looked up after the last


@dataclass(frozen=True, slots=True)
class Spoken:
    """The times of one played segment, all in Unix seconds.

    ``began`` is the start of playback as the output reports it; livekit-agents dates the message
    with the same value. ``captured`` is when the first frame reached the output. ``text`` is when
    the TTS was given the first words; None if it does not report that. ``voiced`` is when the
    first voiced sample left the queue to the room, ``quiet`` when the last one had; None if none
    did. ``words`` are those that began to be played; empty if the TTS does not locate them.
    """

    began: float
    captured: float
    text: float | None
    voiced: float | None
    quiet: float | None = None
    words: tuple[Timed, ...] = ()


@dataclass(slots=True)
class _Segment:
    voice: VoicedFrames
    captured: float
    text: float | None
    began: float | None = None
    # The played runs: start time (Unix seconds), offset in the segment (s), duration (s).
    runs: list[tuple[float, float, float]] = field(default_factory=list)
    words: list[Timed] = field(default_factory=list)  # times are positions in the segment

    def done(self) -> Spoken | None:
        if self.began is None:
            return None
        first = self.voice.first
        voiced = None if first is None else self._left(first, first)
        words = [
            Timed(word.text, *left)
            for word in self.words
            if (left := self._left(word.start, word.end)) is not None
        ]
        return Spoken(
            self.began,
            self.captured,
            self.text,
            None if voiced is None else voiced[0],
            self._quiet(),
            tuple(words),
        )

    def _left(self, start: float, end: float) -> tuple[float, float] | None:
        """Return when the stretch left that begins and ends at these positions, as far as it was
        played; None if its beginning was not."""
        left: tuple[float, float] | None = None
        for began, offset, duration in self.runs:
            if left is None and offset <= start < offset + duration:
                left = began + start - offset, began + min(end - offset, duration)
            elif left is not None and offset < end:
                left = left[0], began + min(end - offset, duration)
        return left

    def _quiet(self) -> float | None:
        for began, offset, duration in reversed(self.runs):
            last = self.voice.last(offset, offset + duration)
            if last is not None:
                return began + last - offset
        return None


class SpokenAudio(PassingOutput):
    """A segment lasts until its playback has finished."""

    def __init__(self, sink: io.AudioOutput, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__("SpokenAudio", sink)
        self._clock = clock
        self._segment: _Segment | None = None
        self._spoken: deque[Spoken] = deque(maxlen=_KEPT)
        self.on("playback_started", self._started)
        self.on("playback_progressed", self._progressed)
        self.on("playback_finished", self._finished)

    def find(self, began: float, until: float) -> list[Spoken]:
        """Return the finished segments of a message, whose playback ``began`` at that time and was
        over at ``until``; empty if none began at that time."""
        found = [spoken for spoken in self._spoken if began <= spoken.began <= until]
        return found if found and found[0].began == began else []

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        segment = self._segment
        if segment is None:
            now = self._clock()
            segment = self._segment = _Segment(
                VoicedFrames(frame.sample_rate), now, _given_text(frame, now)
            )
        segment.voice.feed(np.frombuffer(frame.data, np.int16))
        segment.words += _words(frame)
        await super().capture_frame(frame)

    def pause(self) -> None:
        super().pause()
        drop_queued(self.sink)

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


def _words(frame: rtc.AudioFrame) -> list[Timed]:
    """Return the words that the TTS has located by ``frame``, with their positions."""
    located: list[Timed] = []
    for word in frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, []):
        if isinstance(word, TimedString) and is_given(word.start_time) and is_given(word.end_time):
            located.append(Timed(word, word.start_time, word.end_time))
    return located
