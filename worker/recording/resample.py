"""Brings a signal that comes in pieces to the recording's rate, without shifting it.

A windowed sinc, centred on each sample that it computes: sample n of the result is the signal at
n / RATE seconds. The result lags behind by half the filter's length, and ``flush`` yields the rest.
"""

from __future__ import annotations

from math import gcd
from typing import Final

import numpy as np
import numpy.typing as npt

from core.audio import Pcm

RATE: Final = 16_000
_CROSSINGS = 16  # of the sinc, on either side
_PASSED = 0.92  # of the lower Nyquist frequency


class Resampler:
    """Resamples one signal from ``rate`` Hz to RATE."""

    def __init__(self, rate: int) -> None:
        common = gcd(rate, RATE)
        self._up, self._down = RATE // common, rate // common
        cutoff = _PASSED * min(1.0, self._up / self._down)
        self._half = int(np.ceil(_CROSSINGS / cutoff))
        self._taps = _taps(self._up, self._half, cutoff)
        self._same = self._up == self._down
        self.reset()

    def reset(self) -> None:
        """Begin another signal."""
        self._kept = np.zeros(self._half, np.int16)
        self._next = self._half * self._up  # of the next result, in 1/up of a kept sample

    def push(self, pcm: Pcm) -> Pcm:
        """Return the samples that are known with the signal's next piece."""
        if self._same:
            return pcm
        self._kept = np.concatenate((self._kept, pcm))
        limit = (len(self._kept) - self._half) * self._up
        at = np.arange(self._next, limit, self._down)
        if not len(at):
            return np.empty(0, np.int16)
        whole, phase = at // self._up, at % self._up
        windows = np.lib.stride_tricks.sliding_window_view(self._kept, 2 * self._half)
        near = windows[whole - self._half + 1].astype(np.float32)
        found = np.einsum("ij,ij->i", near, self._taps[phase])
        self._next = int(at[-1]) + self._down
        gone = max(0, self._next // self._up - self._half)
        self._kept, self._next = self._kept[gone:], self._next - gone * self._up
        result: Pcm = np.clip(np.rint(found), -32768, 32767).astype(np.int16)
        return result

    def flush(self) -> Pcm:
        """Return the rest of the signal, and begin another."""
        if self._same:
            return np.empty(0, np.int16)
        rest = self.push(np.zeros(self._half, np.int16))
        self.reset()
        return rest


def _taps(up: int, half: int, cutoff: float) -> npt.NDArray[np.float32]:
    """Return the weights of the 2 * half samples around each of ``up`` phases."""
    distance = np.arange(-half + 1, half + 1)[None, :] - np.arange(up)[:, None] / up
    weights = np.sinc(cutoff * distance) * np.cos(np.pi * distance / (2 * half)) ** 2
    even: npt.NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return even
