"""How far a recording is from what its far end said and heard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.audio import Pcm

Signal = npt.NDArray[np.float64]

_WINDOW_S = 2.0
_STEP_S = 1.0
_MOST_S = 0.5  # how far it may be off to be found
_LEAST_DBFS = -40.0
_LIKE = 0.6
"""A window counts if the recording has it at least this much (1 is the same signal)."""


@dataclass(frozen=True)
class Offset:
    """The recording has what the far end has at ``at_s`` this much later."""

    at_s: float
    ms: float


def offsets(recorded: Pcm, far: Pcm, rate: int) -> list[Offset]:
    """Return the offset of each window of ``far`` that is loud enough to be found."""
    size, reach = round(_WINDOW_S * rate), round(_MOST_S * rate)
    padded = np.concatenate((np.zeros(reach), recorded, np.zeros(size + reach)))
    found = []
    for start in range(0, len(far) - size, round(_STEP_S * rate)):
        wanted = far[start : start + size].astype(np.float64)
        if np.sqrt(np.mean(wanted**2)) < 32768 * 10 ** (_LEAST_DBFS / 20):
            continue
        near = padded[start : start + size + 2 * reach].astype(np.float64)
        if len(near) < size + 2 * reach:
            break
        likeness = _correlated(near, wanted)
        best = int(np.argmax(likeness))
        if likeness[best] >= _LIKE:
            found.append(Offset(start / rate, (best - reach) / rate * 1000))
    return found


def _correlated(
    near: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the normalised correlation of ``wanted`` at each position in ``near``."""
    length = 1 << (len(near) + len(wanted)).bit_length()
    product = np.fft.rfft(near, length) * np.conj(np.fft.rfft(wanted, length))
    count = len(near) - len(wanted) + 1
    matched = np.fft.irfft(product, length)[:count]
    energy = np.concatenate(([0.0], np.cumsum(near**2)))
    there = energy[len(wanted) :] - energy[:count]
    result: npt.NDArray[np.float64] = matched / np.sqrt(
        np.maximum(there, 1.0) * np.dot(wanted, wanted)
    )
    return result
