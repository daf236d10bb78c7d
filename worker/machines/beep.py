"""Detects the beep after which a voicemail box records, in telephone audio.

Voicemail systems and answering machines play one steady sine of some 0.15 to 1 s between
about 400 Hz (landline boxes) and 2 kHz, followed by silence; no standard defines it. So a
beep is a single, constant frequency, alone in the spectrum and followed by silence. Other
sounds differ: speech has harmonics, and its frequencies move; keypad tones (ITU-T Q.23) are
two frequencies at once, chords more; music goes on; fax and modem answer tones (ITU-T V.25:
2100 Hz for 2.6 s and more) and dial tones last too long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.audio import Pcm

_HOP_MS = 20
_WINDOW_MS = 40  # two hops: a longer window has narrower spectral lines
_LOWEST_HZ, _HIGHEST_HZ = 350.0, 2200.0
_LINE_HZ = 60.0  # half the width of a sine's spectral line with a Hann window of 40 ms
_PURE = 0.90  # least part of the energy in the line
_EVEN = 0.3  # least ratio of the weakest 5 ms to the strongest; two close tones (US ringback) beat
_LOUD_DBFS = -42.0
_QUIET_DBFS = -50.0
_FADED_DB = 18.0  # this far below the tone counts as silence, too, on a line that hums
_STEADY_HZ = 20.0
_SHORTEST_MS, _LONGEST_MS = 120, 2000
_SILENCE_MS = 60
_FLAW_MS = 40  # longest disturbance in the tone, such as a lost packet


@dataclass(frozen=True, slots=True)
class Beep:
    """Milliseconds from the first sample fed; exact to about 20 ms."""

    start_ms: float
    end_ms: float
    frequency_hz: float


@dataclass(slots=True)
class _Tone:
    start: int  # in hops
    end: int
    frequency_hz: float
    level_db: float
    quiet: int = 0
    flaws: int = 0


class BeepDetector:
    """Feed mono int16 samples of 8 or 16 kHz in pieces of any size."""

    def __init__(self, sample_rate: int) -> None:
        self._hop = sample_rate * _HOP_MS // 1000
        self._size = sample_rate * _WINDOW_MS // 1000
        self._taper = np.hanning(self._size + 1)[:-1]
        self._bins = 4 * self._size  # zero-padded, to find the peak to within a few Hz
        self._bin_hz = sample_rate / self._bins
        self._line = round(_LINE_HZ / self._bin_hz)
        self._rest: Pcm = np.zeros(0, np.int16)
        self._hops = 0
        self._tone: _Tone | None = None

    def feed(self, pcm: Pcm) -> list[Beep]:
        """Take the next samples; return the beeps that are over, each known 60 ms after its end."""
        samples = np.concatenate([self._rest, pcm])
        found: list[Beep] = []
        start = 0
        while start + self._size <= len(samples):
            beep = self._step(samples[start : start + self._size].astype(np.float64))
            if beep is not None:
                found.append(beep)
            start += self._hop
            self._hops += 1
        self._rest = samples[start:]
        return found

    def _step(self, window: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Beep | None:
        # Measure silence in the later half: the earlier one may still have the end of a tone.
        level_db = _dbfs(window[self._hop :])
        frequency_hz = self._frequency(window) if level_db >= _LOUD_DBFS else None
        tone = self._tone
        if tone is None:
            if frequency_hz is not None:
                self._tone = _Tone(self._hops, self._hops, frequency_hz, level_db)
            return None
        if frequency_hz is not None and abs(frequency_hz - tone.frequency_hz) <= _STEADY_HZ:
            tone.end, tone.quiet, tone.flaws = self._hops, 0, 0
            tone.level_db = max(tone.level_db, level_db)
            return None
        if level_db < max(_QUIET_DBFS, tone.level_db - _FADED_DB):
            tone.quiet += 1
            return self._ended(tone) if tone.quiet * _HOP_MS >= _SILENCE_MS else None
        tone.flaws += 1
        if tone.flaws * _HOP_MS > _FLAW_MS:
            self._tone = None
            if frequency_hz is not None:
                self._tone = _Tone(self._hops, self._hops, frequency_hz, level_db)
        return None

    def _ended(self, tone: _Tone) -> Beep | None:
        self._tone = None
        # The tone fills its first and its last window.
        start_ms = tone.start * _HOP_MS
        end_ms = tone.end * _HOP_MS + _WINDOW_MS
        if not _SHORTEST_MS <= end_ms - start_ms <= _LONGEST_MS:
            return None
        return Beep(float(start_ms), float(end_ms), tone.frequency_hz)

    def _frequency(self, window: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float | None:
        """Return the frequency of the window's single sine; None if it has other sound."""
        envelope = np.square(window).reshape(_WINDOW_MS // 5, -1).sum(axis=1)
        if envelope.min() < _EVEN * envelope.max():
            return None
        power = np.square(np.abs(np.fft.rfft(window * self._taper, self._bins)))
        power[: self._line] = 0.0  # ignore DC and hum
        peak = int(np.argmax(power))
        frequency_hz = peak * self._bin_hz
        if not _LOWEST_HZ <= frequency_hz <= _HIGHEST_HZ:
            return None
        line = power[max(0, peak - self._line) : peak + self._line + 1].sum()
        return frequency_hz if line >= _PURE * power.sum() else None


def _dbfs(samples: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    power = float(np.mean(np.square(samples)))
    return 10 * math.log10(power / 32768**2) if power else -120.0
