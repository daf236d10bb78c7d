"""Measurements on recordings: voice, levels, silence, and where one signal is in another.

Signals are mono int16 arrays. Positions are milliseconds from the array's start, in steps of
20 ms frames. Levels are the RMS of a frame in dBFS, where 0 dBFS is a constant signal of
32768 (so a full-scale sine has -3 dBFS, as in AES17's unweighted RMS less its 3 dB).
Telephone speech is around -20 dBFS, the idle noise of a G.711 line below -60 dBFS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.audio import Pcm
from worker.timing import voiced as voice

FRAME_MS = voice.FRAME_MS
VOICE_DBFS = voice.VOICE_DBFS  # a frame at least this loud is voice
HANGOVER_MS = 200  # a pause inside words; segments closer than this are one
MIN_SPEECH_MS = 60  # shorter sounds are clicks
SILENCE_DBFS = -120.0  # the level given for digital silence


@dataclass(frozen=True)
class Segment:
    """A stretch of voice: from the first voiced frame's start to the last one's end."""

    start_ms: float
    end_ms: float

    @property
    def duration_ms(self) -> float:
        return self.end_ms - self.start_ms


@dataclass(frozen=True)
class Match:
    """The position of one signal in another."""

    offset: int  # samples from the start of the longer one
    score: float  # normalized correlation there: 1.0 for the same shape, 0.0 for unrelated ones


def level_dbfs(pcm: Pcm) -> float:
    """Return the RMS level of a whole signal; -120 for digital silence or no samples."""
    if len(pcm) == 0:
        return SILENCE_DBFS
    rms = float(np.sqrt(np.mean(np.square(pcm.astype(np.float64)))))
    return max(SILENCE_DBFS, 20 * math.log10(rms / 32768)) if rms else SILENCE_DBFS


def frame_levels(pcm: Pcm, sample_rate: int) -> NDArray[np.float64]:
    """Return the level of every whole 20 ms frame, in dBFS."""
    frame = sample_rate * FRAME_MS // 1000
    frames = pcm[: len(pcm) // frame * frame].reshape(-1, frame).astype(np.float64)
    rms = np.sqrt(np.mean(np.square(frames), axis=1))
    floor = 32768 * 10 ** (SILENCE_DBFS / 20)
    levels: NDArray[np.float64] = 20 * np.log10(np.maximum(rms, floor) / 32768)
    return levels


def voiced_segments(
    pcm: Pcm,
    sample_rate: int,
    *,
    threshold_dbfs: float = VOICE_DBFS,
    hangover_ms: float = HANGOVER_MS,
    min_speech_ms: float = MIN_SPEECH_MS,
) -> list[Segment]:
    """Return the stretches of voice.

    Pauses shorter than ``hangover_ms`` do not split a segment; a segment with less than
    ``min_speech_ms`` of voiced frames is dropped. The hangover is not part of a segment.
    """
    finder = SpeechFinder(
        sample_rate,
        threshold_dbfs=threshold_dbfs,
        end_silence_ms=hangover_ms,
        min_speech_ms=min_speech_ms,
    )
    found = finder.feed(pcm)
    last = finder.finish()
    return found if last is None else [*found, last]


def speech_bounds(
    pcm: Pcm, sample_rate: int, *, threshold_dbfs: float = VOICE_DBFS
) -> Segment | None:
    """Return the stretch from the first voiced frame to the last; None if there is none."""
    voiced = np.flatnonzero(frame_levels(pcm, sample_rate) >= threshold_dbfs)
    if len(voiced) == 0:
        return None
    return Segment(float(voiced[0] * FRAME_MS), float((voiced[-1] + 1) * FRAME_MS))


def longest_gap_ms(pcm: Pcm, sample_rate: int, *, threshold_dbfs: float = VOICE_DBFS) -> float:
    """Return the longest run of unvoiced frames between the first and the last voiced one."""
    voiced = np.flatnonzero(frame_levels(pcm, sample_rate) >= threshold_dbfs)
    if len(voiced) < 2:
        return 0.0
    return float((np.diff(voiced).max() - 1) * FRAME_MS)


def time_to_silence_ms(
    pcm: Pcm,
    sample_rate: int,
    from_ms: float,
    *,
    threshold_dbfs: float = VOICE_DBFS,
    quiet_ms: float = 400,
) -> float | None:
    """Return how long the far end continues to speak after ``from_ms`` (barge-in).

    Returns:
        Milliseconds from ``from_ms`` to the end of the last voiced frame before
        ``quiet_ms`` of unvoiced ones; 0.0 if it was already silent; None if the signal
        ends before ``quiet_ms`` of silence.
    """
    start = int(from_ms // FRAME_MS)
    voiced = frame_levels(pcm, sample_rate)[start:] >= threshold_dbfs
    needed = math.ceil(quiet_ms / FRAME_MS)
    quiet = 0
    for index, is_voiced in enumerate(voiced):
        quiet = 0 if is_voiced else quiet + 1
        if quiet == needed:
            end_ms = (start + index + 1 - needed) * FRAME_MS
            return max(0.0, end_ms - from_ms)
    return None


def find(needle: Pcm, haystack: Pcm) -> Match:
    """Return where ``needle`` fits ``haystack`` best, by normalized cross-correlation.

    The score compares shapes, not levels. The offset is exact to the sample for signals with
    a sharp autocorrelation (clicks, noise, speech) and ambiguous for a steady tone.

    Raises:
        ValueError: the needle is silent, empty, or longer than the haystack.
    """
    short = needle.astype(np.float64)
    energy = float(np.sum(np.square(short)))
    if energy == 0 or len(short) > len(haystack):
        raise ValueError("need a needle with sound, no longer than the haystack")
    long = haystack.astype(np.float64)
    size = 1 << (len(long) + len(short) - 1).bit_length()
    spectrum = np.fft.rfft(long, size) * np.conj(np.fft.rfft(short, size))
    correlation = np.fft.irfft(spectrum, size)[: len(long) - len(short) + 1]
    squares = np.concatenate(([0.0], np.cumsum(np.square(long))))
    window = squares[len(short) :] - squares[: -len(short)]
    # A silent window matches nothing: the floor keeps rounding noise out of the score.
    score = correlation / np.sqrt(np.maximum(window, 1e-6 * energy) * energy)
    best = int(np.argmax(score))
    return Match(best, float(score[best]))


class SpeechFinder:
    """Finds utterances in a signal that arrives piece by piece.

    An utterance begins with its first voiced frame and is complete once
    ``end_silence_ms`` of unvoiced frames have followed its last one.
    """

    def __init__(
        self,
        sample_rate: int,
        *,
        threshold_dbfs: float = VOICE_DBFS,
        end_silence_ms: float = HANGOVER_MS,
        min_speech_ms: float = MIN_SPEECH_MS,
    ) -> None:
        self._rate = sample_rate
        self._threshold = threshold_dbfs
        self._end_frames = max(1, math.ceil(end_silence_ms / FRAME_MS))
        self._min_frames = max(1, math.ceil(min_speech_ms / FRAME_MS))
        self._frame = sample_rate * FRAME_MS // 1000
        self._rest: Pcm = np.zeros(0, dtype=np.int16)
        self._count = 0  # whole frames seen
        self._first: int | None = None
        self._last = 0
        self._voiced = 0

    @property
    def speaking(self) -> bool:
        """True if an utterance has begun and is not complete."""
        return self.started_ms is not None

    @property
    def started_ms(self) -> float | None:
        """The start of the utterance that is not complete; None if there is none."""
        if self._first is None or self._voiced < self._min_frames:
            return None
        return float(self._first * FRAME_MS)

    def feed(self, pcm: Pcm) -> list[Segment]:
        """Take the next samples; return the utterances that are now complete."""
        signal = np.concatenate([self._rest, pcm])
        whole = len(signal) // self._frame * self._frame
        self._rest = signal[whole:]
        done: list[Segment] = []
        for voiced in frame_levels(signal[:whole], self._rate) >= self._threshold:
            if voiced:
                if self._first is None:
                    self._first = self._count
                self._last = self._count
                self._voiced += 1
            elif self._first is not None and self._count - self._last >= self._end_frames:
                segment = self.finish()
                if segment is not None:
                    done.append(segment)
            self._count += 1
        return done

    def finish(self) -> Segment | None:
        """End the utterance at its last voiced frame; None if there is none."""
        first, voiced = self._first, self._voiced
        self._first, self._voiced = None, 0
        if first is None or voiced < self._min_frames:
            return None
        return Segment(float(first * FRAME_MS), float((self._last + 1) * FRAME_MS))
