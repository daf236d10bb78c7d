"""The one rule, for phone and worker, that decides which frames of audio are voice.

A frame of 20 ms is voice when the RMS of its samples is at least -45 dBFS, where 0 dBFS is a
constant signal of 32768. Telephone speech lies around -20, idle noise of a G.711 line below -60.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from core.audio import Pcm

FRAME_MS: Final = 20
VOICE_DBFS: Final = -45.0

_LEAST_POWER: Final = (32768 * 10 ** (VOICE_DBFS / 20)) ** 2


def is_voiced(pcm: Pcm) -> bool:
    """Return True if the samples of one frame are voice; an empty frame is not."""
    samples = pcm.astype(np.float32)
    return bool(np.dot(samples, samples) >= _LEAST_POWER * max(1, len(samples)))


class VoicedFrames:
    """Finds the voiced frames of a stream that comes in pieces of any length.

    Positions are seconds from the start of the stream.
    """

    def __init__(self, sample_rate: int) -> None:
        self._frame = sample_rate * FRAME_MS // 1000
        self._voiced = bytearray()  # 1 for each whole frame that is voice
        self._rest = np.empty(0, np.int16)

    @property
    def first(self) -> float | None:
        """The start of the first voiced frame; None until there is one."""
        number = self._voiced.find(1)
        return None if number < 0 else number * FRAME_MS / 1000

    def last(self, start: float, end: float) -> float | None:
        """Return the end of the last voiced frame between ``start`` and ``end``."""
        first = math.ceil(round(start * 1000 / FRAME_MS, 3))
        number = self._voiced.rfind(1, first, math.ceil(round(end * 1000 / FRAME_MS, 3)))
        return None if number < 0 else min(end, (number + 1) * FRAME_MS / 1000)

    def feed(self, pcm: Pcm) -> None:
        """Examine the next piece of the stream."""
        pcm = np.concatenate((self._rest, pcm)) if len(self._rest) else pcm
        whole = len(pcm) // self._frame * self._frame
        for start in range(0, whole, self._frame):
            self._voiced.append(is_voiced(pcm[start : start + self._frame]))
        self._rest = pcm[whole:].copy()
