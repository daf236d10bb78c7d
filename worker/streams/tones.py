"""The tones of a telephone's keys (ITU-T Q.23), for far ends that take them as sound."""

from __future__ import annotations

import numpy as np

from core.audio import Pcm
from worker.line import KEYS

_ROWS, _COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477, 1633)  # Hz
_PLACES = {key: divmod(place, 4) for place, key in enumerate("123A456B789C*0#D")}
assert set(_PLACES) == set(KEYS)

# Receivers need 40 ms of tone and of pause (Q.24); twice that survives a lossy line.
_TONE_S, _PAUSE_S = 0.1, 0.08
_LEVEL = 0.25  # of full scale, each of the two: -9 dBFS together at most


def tone(key: str, rate: int) -> Pcm:
    """Return the tone of one of KEYS and the pause after it, at ``rate`` Hz."""
    row, column = _PLACES[key]
    times = np.arange(round(rate * _TONE_S)) / rate
    wave = sum(np.sin(2 * np.pi * hz * times) for hz in (_ROWS[row], _COLUMNS[column]))
    sound = (np.asarray(wave) * _LEVEL * 32767).astype(np.int16)
    return np.concatenate([sound, np.zeros(round(rate * _PAUSE_S), np.int16)])
