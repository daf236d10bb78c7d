"""Whether a phone heard a greeting from the beginning of its first word. Sans-I/O.

The simulated voice says a text alike every time, so the word is looked for by its shape. A
recogniser guesses a word from what is left of it; the shape tells a clipped one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.audio import Pcm
from dev import listen
from dev.phone_tracks import SAMPLE_RATE
from dev.speech import AGENT_VOICE, Voice, synthesize

_ONSET_MS = 100
_WITHIN_S = 3.0
# Of the word that went through Opus and G.711 unhurt, and of another: see tests/test_first_word.py.
_ALIKE = 0.7
# The word's begin against the first voiced frame, which lies on a grid of 20 ms.
_APART_MS = 40.0


@dataclass(frozen=True, slots=True)
class Found:
    """``score`` and ``onset_score``: how alike the word and its first 100 ms are (1.0: the same).

    ``after_ms``: from the first sound that was heard to the word's beginning; far below zero when
    the beginning is missing, far above when something else was said before.
    """

    score: float
    onset_score: float
    after_ms: float

    @property
    def whole(self) -> bool:
        alike = min(self.score, self.onset_score) >= _ALIKE
        return alike and abs(self.after_ms) <= _APART_MS


class FirstWord:
    """The first word of ``text``."""

    def __init__(self, text: str, voice: Voice = AGENT_VOICE) -> None:
        speech = synthesize(text, voice, SAMPLE_RATE)
        word = speech.words[0]
        self._pcm = speech.pcm[_samples(word.start_ms) : _samples(word.end_ms)]

    @property
    def duration_s(self) -> float:
        return len(self._pcm) / SAMPLE_RATE

    def find(self, received: Pcm) -> Found | None:
        """``received``: all that was heard from the answer on, 8 kHz; None if that is silent."""
        voice = listen.speech_bounds(received, SAMPLE_RATE)
        if voice is None:
            return None
        first = _samples(voice.start_ms)
        heard = received[: first + int(_WITHIN_S * SAMPLE_RATE)]
        # A word whose beginning is missing fits best before there is anything.
        lead = np.zeros(len(self._pcm), np.int16)
        padded = np.concatenate([lead, heard, lead])
        best = listen.find(self._pcm, padded)
        onset = self._pcm[: _samples(_ONSET_MS)]
        there = padded[best.offset : best.offset + len(onset)]
        begins = best.offset - len(lead)
        return Found(
            best.score, listen.find(onset, there).score, 1000 * (begins - first) / SAMPLE_RATE
        )


def _samples(ms: float) -> int:
    return round(ms * SAMPLE_RATE / 1000)
