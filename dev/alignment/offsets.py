"""Finds how much later than the far end a recording has a signal, by cross-correlation."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from core.audio import Pcm
from worker.recording.resample import RATE, Resampler

FAR_RATE: Final = 8000
"""The rate of what the far end said and heard."""

_WINDOW_S = 1.5
_STEP_S = 0.5
_MOST_S = 2.0  # how far it may be off to be found, the difference of the clocks included
_LEAST_DBFS = -40.0
_LIKE = 0.6
"""A window counts if the recording has it at least this much (1 is the same signal)."""

_Signal = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Offset:
    """The recording has what the far end has at ``at_s`` this much later."""

    at_s: float
    ms: float


def read_channels(file: Path | BinaryIO) -> tuple[Pcm, Pcm]:
    """Return what the caller said and heard, by a recording at RATE."""
    with wave.open(str(file) if isinstance(file, Path) else file) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (2, 2, RATE)
        frames = np.frombuffer(wav.readframes(wav.getnframes()), np.int16).reshape(-1, 2)
    return frames[:, 0], frames[:, 1]


def offsets(recorded: Pcm, far: Pcm, pace: float = 1.0) -> list[Offset]:
    """Return the offset of each window of ``far`` that is loud enough to be found.

    ``pace``: how much faster the far end's clock runs than the recording's.
    """
    resampler = Resampler(FAR_RATE)
    far = np.concatenate((resampler.push(far), resampler.flush()))
    size, reach = round(_WINDOW_S * RATE), round(_MOST_S * RATE)
    padded = np.concatenate((np.zeros(reach), recorded, np.zeros(size + reach)))
    found = []
    for start in range(0, len(far) - size, round(_STEP_S * RATE)):
        wanted = far[start : start + size].astype(np.float64)
        if np.sqrt(np.mean(wanted**2)) < 32768 * 10 ** (_LEAST_DBFS / 20):
            continue
        # The middles of both windows are at the same time if the offset is 0.
        middle = (start + size / 2) / pace
        first = round(middle - size / 2)
        near = padded[max(0, first) : max(0, first) + size + 2 * reach].astype(np.float64)
        if len(near) < size + 2 * reach:
            break
        likeness = _correlated(near, wanted)
        best = int(np.argmax(likeness))
        if likeness[best] >= _LIKE:
            found.append(Offset(start / RATE, (best - reach) / RATE * 1000))
    return found


def _correlated(near: _Signal, wanted: _Signal) -> _Signal:
    """Return the normalised correlation of ``wanted`` at each position in ``near``."""
    length = 1 << (len(near) + len(wanted)).bit_length()
    product = np.fft.rfft(near, length) * np.conj(np.fft.rfft(wanted, length))
    count = len(near) - len(wanted) + 1
    matched = np.fft.irfft(product, length)[:count]
    energy = np.concatenate(([0.0], np.cumsum(near**2)))
    there = energy[len(wanted) :] - energy[:count]
    result: _Signal = matched / np.sqrt(np.maximum(there, 1.0) * np.dot(wanted, wanted))
    return result
