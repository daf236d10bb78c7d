"""Finds when the caller stopped speaking, from the received audio, in wall-clock time.

A voice activity detector reports this late, because it smooths and its thread may have waited.
The audio has the exact time: the last voiced frame before the silence that the detector saw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from core.audio import Pcm
from worker.timing.voiced import is_voiced

_KEPT = 500  # frames of 20 ms: 10 s, more than the longest wait for a turn's end
# How far the last voiced frame is at most after and before the detector's end of speech (s).
_VAD_EARLY_S = 0.25
_VAD_LATE_S = 0.4
# Frames from the room are shorter. livekit-agents ends a stream with one long frame of silence.
_LONGEST_S = 0.1
# Voice this close to the end of the examined audio means that the line is never silent.
_SILENT_S = 0.06


@dataclass(frozen=True, slots=True)
class _Frame:
    end: float  # position of its last sample in the stream (s)
    arrived: float  # Unix seconds
    voiced: bool


class HeardAudio:
    """The last ten seconds of the caller's audio; each frame is voiced or not."""

    def __init__(self) -> None:
        self._position = 0.0
        self._frames: deque[_Frame] = deque(maxlen=_KEPT)

    def push(self, pcm: Pcm, sample_rate: int, arrived: float) -> None:
        """Add the stream's next frame, which arrived at that time (Unix seconds)."""
        seconds = len(pcm) / sample_rate
        if seconds >= _LONGEST_S:
            return
        self._position += seconds
        self._frames.append(_Frame(self._position, arrived, is_voiced(pcm)))

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
