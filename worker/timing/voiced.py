"""Where audio begins and ends to be voice: one rule, at the phone and in the worker.

A frame of 20 ms is voice when the RMS of its samples is at least -45 dBFS, where 0 dBFS is a
constant signal of 32768. Telephone speech lies around -20, a G.711 line's idle noise below -60.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from core.audio import Pcm

FRAME_MS: Final = 20
VOICE_DBFS: Final = -45.0

_LEAST_POWER: Final = (32768 * 10 ** (VOICE_DBFS / 20)) ** 2


def is_voiced(pcm: Pcm) -> bool:
    """Whether these samples, one frame's, are voice; none are not."""
    samples = pcm.astype(np.float32)
    return bool(np.dot(samples, samples) >= _LEAST_POWER * max(1, len(samples)))


class FirstVoice:
    """Finds the first voiced frame of a stream that comes in pieces of any length.

    ``position`` is where it begins, in seconds from the stream's start; None until it has come.
    """

    def __init__(self, sample_rate: int) -> None:
        self.position: float | None = None
        self._rate = sample_rate
        self._frame = sample_rate * FRAME_MS // 1000
        self._before = 0  # samples in whole frames without voice
        self._rest = np.empty(0, np.int16)

    def feed(self, pcm: Pcm) -> None:
        """Look at what follows. Costs nothing once the voice was found."""
        if self.position is not None:
            return
        pcm = np.concatenate((self._rest, pcm)) if len(self._rest) else pcm
        whole = len(pcm) // self._frame * self._frame
        for start in range(0, whole, self._frame):
            if is_voiced(pcm[start : start + self._frame]):
                self.position = (self._before + start) / self._rate
                return
        self._before += whole
        self._rest = pcm[whole:].copy()
