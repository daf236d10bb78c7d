"""How far a recording is from what its far end said and heard."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from core.audio import Pcm
from worker.recording.resample import RATE, Resampler

OFF_MS = 20.0
"""A channel may be this far off."""
DRIFT_MS = 5.0
"""And it may move this far during the call."""

Signal = npt.NDArray[np.float64]

_SETTLED_S = 5.0  # after this long, the line has measured its delay
_FEW = 4  # windows at the beginning and at the end
_WINDOW_S = 1.5
_STEP_S = 0.5
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


def channels(folder: Path, call_id: str) -> tuple[Pcm, Pcm]:
    """Return what the caller said and heard, from the call's recording somewhere in a folder."""
    (path,) = folder.rglob(f"{call_id}.wav")
    with wave.open(str(path)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (2, 2, RATE)
        frames = np.frombuffer(wav.readframes(wav.getnframes()), np.int16).reshape(-1, 2)
    return frames[:, 0], frames[:, 1]


def at_rate(pcm: Pcm, rate: int = 8000) -> Pcm:
    """Return the signal at the recording's rate."""
    resampler = Resampler(rate)
    return np.concatenate((resampler.push(pcm), resampler.flush()))


def aligned(
    recorded: tuple[Pcm, Pcm],
    said: Pcm,
    heard: Pcm,
    *,
    off_ms: float = OFF_MS,
    drift_ms: float = DRIFT_MS,
) -> None:
    """Check both channels against what the far end said and heard, at 8 kHz on one clock.

    That clock and the recording's may differ by a constant.
    """
    both = [
        offsets(channel, at_rate(far), RATE)
        for channel, far in zip(recorded, (said, heard), strict=True)
    ]
    caller, agent = ([each.ms for each in found] for found in both)
    print(f"caller {caller}\nagent {agent}")  # pytest shows it if the test fails
    origin = (median(caller) + median(agent)) / 2
    for channel in both:
        found = [each.ms for each in channel]
        assert abs(median(found) - origin) <= off_ms
        assert sum(abs(ms - origin) > off_ms for ms in found) <= len(found) // 10
        settled = [each.ms for each in channel if each.at_s >= _SETTLED_S]
        assert abs(median(settled[-_FEW:]) - median(settled[:_FEW])) <= drift_ms
