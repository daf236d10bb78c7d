"""Finds when the agent's voice was played: every sample of it, and none that was not.

``VoiceTap`` sits in front of the session's audio output and keeps what passes. The output reports
each stretch that was played when it is over. A stretch may last a minute, so ``settle`` asks the
output how far it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np
from livekit import rtc
from livekit.agents.voice import io

from core.audio import Pcm
from worker._private import playing
from worker.recording.resample import RATE, Resampler
from worker.timing.passing_output import PassingOutput

_PIECE: Final = RATE // 10

Played = Callable[[float, Pcm, bool], None]
"""When the first sample left (Unix seconds), the samples, and whether they begin a stretch."""


class _Segment:
    """One segment's samples at RATE, from its first that was not played."""

    def __init__(self) -> None:
        self._pcm = bytearray()
        self._start = 0
        self.run: float | None = None  # where the stretch begins that was played last
        self.complete = False

    def append(self, pcm: Pcm) -> None:
        self._pcm += pcm.tobytes()

    def take(self, begin: int, end: int) -> tuple[int, Pcm]:
        """Return the samples from ``begin``, or the first that is left, to ``end``; forget them and
        those before."""
        begin = max(begin, self._start)
        first, last = (2 * (position - self._start) for position in (begin, max(begin, end)))
        taken = np.frombuffer(bytes(self._pcm[first:last]), np.int16)
        del self._pcm[:last]
        self._start = begin + len(taken)
        return begin, taken


class VoiceTap(PassingOutput):
    def __init__(self, sink: io.AudioOutput, on_played: Played) -> None:
        super().__init__("VoiceTap", sink)
        self._on_played = on_played
        self._resampler: Resampler | None = None
        self._rate = 0
        self._segments: deque[_Segment] = deque()  # the first one is being played
        self._cleared = False  # the rest of the last segment is not played
        self.on("playback_progressed", self._progressed)
        self.on("playback_finished", self._finished)

    def settle(self, before: float) -> None:
        """Report what was played of the current stretch ``before`` that time (Unix seconds).

        How far the output is gets more certain while it plays: give a time that is SOON_S ago,
        unless the call is over.
        """
        if (run := playing(self.sink)) is not None:
            started_at, offset, duration = run
            duration = min(duration, before - started_at)
            if duration > 0:
                self._played(started_at, offset, duration)

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        if not self._cleared:
            if not self._segments or self._segments[-1].complete:
                self._segments.append(_Segment())
            pcm = np.frombuffer(frame.data, np.int16)
            self._segments[-1].append(self._resampling(frame.sample_rate).push(pcm))
        await super().capture_frame(frame)

    def flush(self) -> None:
        self._complete()
        self._cleared = False
        super().flush()

    def clear_buffer(self) -> None:
        self._cleared = bool(self._segments) and not self._segments[-1].complete
        self._complete()
        super().clear_buffer()

    def _complete(self) -> None:
        if self._segments and not self._segments[-1].complete and self._resampler is not None:
            self._segments[-1].append(self._resampler.flush())
            self._segments[-1].complete = True

    def _resampling(self, rate: int) -> Resampler:
        if self._resampler is None or rate != self._rate:
            self._resampler, self._rate = Resampler(rate), rate
        return self._resampler

    def _progressed(self, event: io.PlaybackProgressedEvent) -> None:
        self._played(event.started_at, event.offset, event.duration)

    def _played(self, started_at: float, offset: float, duration: float) -> None:
        if not self._segments:
            return
        segment = self._segments[0]
        anew, segment.run = segment.run != offset, offset
        begin, pcm = segment.take(round(offset * RATE), round((offset + duration) * RATE))
        for start in range(0, len(pcm), _PIECE):
            left = started_at + (begin + start) / RATE - offset
            self._on_played(left, pcm[start : start + _PIECE], anew and not start)

    def _finished(self, _: io.PlaybackFinishedEvent) -> None:
        if self._segments:
            self._segments.popleft()
