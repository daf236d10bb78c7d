"""The one rule, for phone and worker, that decides which frames of audio are voice.

A frame of 20 ms is voice when the RMS of its samples is at least -45 dBFS, where 0 dBFS is a
constant signal of 32768. Telephone speech lies around -20, idle noise of a G.711 line below -60.
"""

from __future__ import annotations

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


class FirstVoice:
    """Finds the first voiced frame of a stream that comes in pieces of any length.

    ``position`` is its start in seconds from the start of the stream; None until it is found.
    """

    def __init__(self, sample_rate: int) -> None:
        self.position: float | None = None
        self._rate = sample_rate
        self._frame = sample_rate * FRAME_MS // 1000
        self._before = 0  # samples in whole frames without voice
        self._rest = np.empty(0, np.int16)

    def feed(self, pcm: Pcm) -> None:
        """Examine the next piece of the stream. Costs nothing once voice has been found."""
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
