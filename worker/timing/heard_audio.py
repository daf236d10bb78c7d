"""Finds when the caller spoke, from the received audio, in wall-clock time.

A voice activity detector reports this late, because it smooths and its thread may have waited.
The audio has the exact time: the last voiced frame before the silence that the detector saw.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from core.audio import Pcm
from worker.timing.voiced import is_voiced

# Frames of 20 ms: 30 s, more than the longest wait for a turn's end, or for the STT's words.
_KEPT = 1500
# How far the first voiced frame is at most before the detector's start of speech (s).
_VAD_BEHIND_S = 0.5
# Words begin after at least this much silence.
_PAUSE_S = 0.2
# How far the last voiced frame is at most after and before the detector's end of speech (s).
_VAD_EARLY_S = 0.25
_VAD_LATE_S = 0.4
# Frames from the room are shorter. livekit-agents ends a stream with one long frame of silence.
_LONGEST_S = 0.1
# Voice this close to the end of the examined audio means that the line is never silent.
_SILENT_S = 0.06
_LOOKED_AT = 50  # frames after one that may have waited for a busy event loop


@dataclass(frozen=True, slots=True)
class _Frame:
    end: float  # position of its last sample in the stream (s)
    arrived: float  # Unix seconds
    voiced: bool
    seconds: float
    pushed: float  # as ``end``, with the silence that livekit-agents makes up


class HeardAudio:
    """The last half minute of the caller's audio; each frame is voiced or not."""

    def __init__(self) -> None:
        self._position = 0.0
        self._pushed = 0.0
        self._frames: deque[_Frame] = deque(maxlen=_KEPT)

    def push(self, pcm: Pcm, sample_rate: int, arrived: float) -> float:
        """Add the next frame, which arrived at that time (Unix seconds). Return its position: how
        many seconds of audio were pushed before it."""
        seconds = len(pcm) / sample_rate
        position = self._pushed
        self._pushed += seconds
        if seconds < _LONGEST_S:
            self._position += seconds
            self._frames.append(
                _Frame(self._position, arrived, is_voiced(pcm), seconds, self._pushed)
            )
        return position

    def arrived(self, position: float) -> float | None:
        """Return when the sample at ``position`` arrived; None if it is not kept any more."""
        first = bisect_left(self._frames, position, key=lambda frame: frame.pushed)
        if first == len(self._frames) or position < (
            (frame := self._frames[first]).pushed - frame.seconds - _LONGEST_S
        ):
            return None
        came = self._came(frame, islice(self._frames, first, first + _LOOKED_AT))
        return came - max(0.0, min(frame.pushed - position, frame.seconds))

    def speech_start(self, vad_start: float) -> float:
        """Return when the first voiced sample of the current speech arrived (Unix seconds).

        ``vad_start`` is the detector's start of speech, which it has just reported. Return it if
        the line was not silent before, or has no voice.
        """
        near = [f for f in self._frames if f.arrived >= vad_start - _VAD_BEHIND_S]
        first: _Frame | None = None
        for frame in reversed(near):
            if frame.voiced:
                first = frame
            elif first is not None and first.end - first.seconds - frame.end >= _PAUSE_S:
                break
        if first is None or first is near[0]:
            return vad_start
        return self._came(first, (f for f in near if f.end >= first.end)) - first.seconds

    def speech_end(self, *, vad_end: float, before: float) -> float:
        """Return when the last voiced sample near ``vad_end`` arrived (Unix seconds).

        ``vad_end`` is the detector's end of speech, ``before`` the time when the turn was decided.
        Return ``vad_end`` if the line has noise as loud as voice, or no voice at all.
        """
        until = min(before, vad_end + _VAD_EARLY_S)
        near = [f for f in self._frames if vad_end - _VAD_LATE_S <= f.arrived <= until]
        voiced = [f for f in near if f.voiced]
        if not voiced or voiced[-1].end > near[-1].end - _SILENT_S:
            return vad_end
        last = voiced[-1]
        return self._came(
            last, (f for f in self._frames if last.end <= f.end and f.arrived <= before)
        )

    @staticmethod
    def _came(frame: _Frame, later: Iterable[_Frame]) -> float:
        """Return when ``frame`` arrived, judged by the frames after it.

        While the event loop is busy, frames wait and then arrive in a burst, later than the audio.
        """
        return min((f.arrived - (f.end - frame.end) for f in later), default=frame.arrived)
