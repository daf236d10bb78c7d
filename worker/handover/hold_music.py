"""Hold music: a slow arpeggio, synthesised here so that no licence is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cache

import numpy as np
from livekit import rtc

from core.audio import Pcm

RATE = 16_000  # Hz
_FRAME = RATE // 50
_NOTE_S = 0.5
_RING_S = 2.0
_LEVEL = 0.12  # of full scale, for one note
# C, A minor, F and G, each played upwards and down again; in semitones above middle C.
_CHORDS = ((0, 4, 7, 12), (-3, 0, 4, 9), (-7, -3, 0, 5), (-5, -1, 2, 7))
_ORDER = (0, 1, 2, 3, 2, 1)
_MIDDLE_C = 261.63  # Hz


@cache
def loop() -> Pcm:
    """Return one round of 12 s, which can be looped without a gap."""
    notes = [chord[step] for chord in _CHORDS for step in _ORDER]
    samples = int(len(notes) * _NOTE_S * RATE)
    music = np.zeros(samples)
    for position, semitones in enumerate(notes):
        tone = _note(_MIDDLE_C * 2 ** (semitones / 12))
        begin = int(position * _NOTE_S * RATE)
        # A note that rings beyond the end wraps to the beginning.
        music[(begin + np.arange(tone.size)) % samples] += tone
    return (np.clip(music, -1, 1) * 32767).astype(np.int16)


def _note(frequency: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    at = np.arange(int(_RING_S * RATE)) / RATE
    attack = np.minimum(at / 0.01, 1)
    decay = np.exp(-at * 2.5) * np.minimum((_RING_S - at) / 0.1, 1)
    tone = np.sin(2 * np.pi * frequency * at) + 0.3 * np.sin(4 * np.pi * frequency * at)
    return np.asarray(_LEVEL * attack * decay * tone)


async def frames() -> AsyncIterator[rtc.AudioFrame]:
    """Yield frames of 20 ms without end."""
    music = loop()
    while True:
        for begin in range(0, music.size - _FRAME + 1, _FRAME):
            pcm = music[begin : begin + _FRAME].tobytes()
            yield rtc.AudioFrame(pcm, RATE, 1, _FRAME)
