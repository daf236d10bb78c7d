"""Checks that a phone heard a greeting from the beginning of its first word. Sans-I/O.

The simulated voice always says a text in the same way, so the word is found by correlation with
its samples, which shows a clipped word; a recogniser would guess it from the rest. The word is
searched piece by piece, because a jitter buffer stretches the audio until it has settled.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np

from core.audio import Pcm
from dev.phone.tracks import SAMPLE_RATE
from dev.speech import AGENT_VOICE, Voice, listen, synthesize

_PIECE_MS, _HOP_MS = 60, 20
# Quieter pieces (breath, the closure of a stop) do not correlate after a codec.
_LOUD_DBFS = -35.0
# How much a piece may be early or late.
_EARLY_MS, _LATE_MS = 150, 150
# The least correlation of a piece after Opus, a jitter buffer and G.711.
_ALIKE = 0.6
_SHARE = 0.8
# Limits of ``Found.shift_ms``; the first voiced frame is on a grid of 20 ms.
_CLIPPED_MS, _LATER_MS = -40.0, 100.0


@dataclass(frozen=True, slots=True)
class Found:
    """``share``: the share of the word's pieces that were heard (0 to 1).

    ``shift_ms``: how much later they came than if the word began with the first sound that was
    heard: far below zero if its beginning is missing, far above zero after another sound.
    """

    share: float
    shift_ms: float

    @property
    def whole(self) -> bool:
        return self.share >= _SHARE and _CLIPPED_MS <= self.shift_ms <= _LATER_MS


class FirstWord:
    """The first word of ``text``."""

    def __init__(self, text: str, voice: Voice = AGENT_VOICE) -> None:
        speech = synthesize(text, voice, SAMPLE_RATE)
        word = speech.words[0]
        pcm = speech.pcm[_samples(word.start_ms) : _samples(word.end_ms)]
        voiced = listen.speech_bounds(pcm, SAMPLE_RATE)
        assert voiced is not None, "a word has sound"
        self.duration_s = len(pcm) / SAMPLE_RATE
        self._pieces = [
            (at - _samples(voiced.start_ms), piece)
            for at in range(0, len(pcm), _samples(_HOP_MS))
            if len(piece := pcm[at : at + _samples(_PIECE_MS)]) == _samples(_PIECE_MS)
            and listen.level_dbfs(piece) >= _LOUD_DBFS
        ]

    def find(self, received: Pcm) -> Found | None:
        """Find the word in ``received``, the audio since the answer, 8 kHz. None if silent."""
        voice = listen.speech_bounds(received, SAMPLE_RATE)
        if voice is None:
            return None
        lead, tail = (np.zeros(_samples(ms), np.int16) for ms in (_EARLY_MS, _LATE_MS + 1000))
        padded = np.concatenate([lead, received[_samples(voice.start_ms) :], tail])
        shifts = []
        for at, piece in self._pieces:
            around = padded[max(0, at) : at + len(lead) + len(piece) + _samples(_LATE_MS)]
            match = listen.find(piece, around)
            if match.score >= _ALIKE:
                shifts.append(1000 * (match.offset + max(0, at) - at - len(lead)) / SAMPLE_RATE)
        if not shifts:
            return Found(0.0, 0.0)
        return Found(len(shifts) / len(self._pieces), median(shifts))


def _samples(ms: float) -> int:
    return round(ms * SAMPLE_RATE / 1000)
