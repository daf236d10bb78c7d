"""When the caller stopped to speak: a position in the audio that came, on the wall clock.

A voice activity detector tells late, by its own smoothing and by however long its thread waited.
The audio itself tells exactly: its last voiced frame before the silence that the detector saw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from core.audio import Pcm
from worker.timing.voiced import is_voiced

_KEPT = 500  # frames: 10 s of 20 ms, more than the longest wait for a turn's end
# How far the detector's end of speech and the last voiced frame are apart at most (s).
_VAD_EARLY_S = 0.25
_VAD_LATE_S = 0.4
# No frame of the room's is as long: livekit-agents ends a stream with silence of its own, at once.
_LONGEST_S = 0.1
# Voice until here means that the line is never silent.
_SILENT_S = 0.06


@dataclass(frozen=True, slots=True)
class _Frame:
    end: float  # position of its last sample in the stream (s)
    arrived: float  # Unix seconds
    voiced: bool


class HeardAudio:
    """The last ten seconds of what the caller's side sent, as voice or none."""

    def __init__(self) -> None:
        self._position = 0.0
        self._frames: deque[_Frame] = deque(maxlen=_KEPT)

    def push(self, pcm: Pcm, sample_rate: int, arrived: float) -> None:
        """The next frame of the stream, and when it came (Unix seconds)."""
        seconds = len(pcm) / sample_rate
        if seconds >= _LONGEST_S:
            return
        self._position += seconds
        self._frames.append(_Frame(self._position, arrived, is_voiced(pcm)))

    def speech_end(self, *, vad_end: float, before: float) -> float:
        """When the last voiced sample came, by what the detector says (Unix seconds).

        ``vad_end`` is the detector's end of speech, ``before`` when the turn was decided. The
        former is answered where the line has noise as loud as voice, or no voice at all.
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
        """When ``frame`` would have come by the clock of those after it.

        When the loop was busy, frames wait and come in a burst: the audio was there before.
        """
        return min((f.arrived - (f.end - frame.end) for f in later), default=frame.arrived)
