"""Finds where speech begins and ends in a stream of audio, on the audio's own clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from core.audio import Pcm

_FRAME_MS = 10
_ONSET_MS = 30  # shorter sounds are clicks
_PAUSE_MS = 60  # after this much silence the speech may have ended
_BEFORE_MS, _AFTER_MS = 150, 100  # kept around the speech for soft beginnings and endings
_LONGEST_MS = 30_000


@dataclass(frozen=True)
class Started:
    at_ms: float


@dataclass(frozen=True)
class Paused:
    """Speech may have ended; ``audio`` begins at ``from_ms``. Ended or Resumed follows."""

    audio: Pcm
    from_ms: float


@dataclass(frozen=True)
class Resumed:
    pass


@dataclass(frozen=True)
class Ended:
    """The endpoint: the required silence has followed ``speech_end_ms``.

    ``paused``: the last Paused has the same speech, so its recognition is the result.
    """

    audio: Pcm
    from_ms: float
    speech_end_ms: float
    paused: bool


Event: TypeAlias = Started | Paused | Resumed | Ended


class Segmenter:
    """Turns mono samples into events, in order. Positions are ms from the start."""

    def __init__(self, sample_rate: int, silence_ms: float, threshold_dbfs: float = -42.0) -> None:
        self._rate = sample_rate
        self._frame = sample_rate * _FRAME_MS // 1000
        self._silence_ms = max(silence_ms, _FRAME_MS)
        self._threshold = 32768 * 10 ** (threshold_dbfs / 20)
        self._rest: Pcm = np.zeros(0, np.int16)
        self._kept: list[Pcm] = []  # frames since ``_kept_from_ms``
        self._kept_from_ms = 0.0
        self._now_ms = 0.0
        self._loud_ms = 0.0
        self._quiet_ms = 0.0
        self._speaking = False
        self._paused = False

    @property
    def now_ms(self) -> float:
        """The length of the audio so far."""
        return self._now_ms

    @property
    def speaking(self) -> bool:
        return self._speaking

    def so_far(self) -> tuple[Pcm, float]:
        """Return the audio of the utterance in progress, and its start in ms."""
        return np.concatenate([np.zeros(0, np.int16), *self._kept]), self._kept_from_ms

    def feed(self, pcm: Pcm) -> list[Event]:
        events: list[Event] = []
        samples = np.concatenate([self._rest, pcm])
        whole = len(samples) // self._frame * self._frame
        self._rest = samples[whole:]
        for frame in samples[:whole].reshape(-1, self._frame):
            self._step(frame, events)
        return events

    def flush(self) -> list[Event]:
        """End the utterance in progress, if there is one, without silence."""
        return [self._end()] if self._speaking else []

    def _step(self, frame: Pcm, events: list[Event]) -> None:
        loud = float(np.sqrt(np.mean(np.square(frame.astype(np.float64))))) >= self._threshold
        self._kept.append(frame)
        self._now_ms += _FRAME_MS
        if not self._speaking:
            self._loud_ms = self._loud_ms + _FRAME_MS if loud else 0.0
            if self._loud_ms >= _ONSET_MS:
                self._speaking, self._paused, self._quiet_ms = True, False, 0.0
                events.append(Started(self._now_ms - self._loud_ms))
            else:
                self._forget()
            return
        self._quiet_ms = 0.0 if loud else self._quiet_ms + _FRAME_MS
        if loud and self._paused:
            self._paused = False
            events.append(Resumed())
        if self._quiet_ms >= self._silence_ms:
            events.append(self._end())
        elif self._quiet_ms >= _PAUSE_MS and not self._paused:
            self._paused = True
            events.append(Paused(*self.so_far()))
        elif self._now_ms - self._kept_from_ms >= _LONGEST_MS:
            events.append(self._end())

    def _end(self) -> Ended:
        audio, from_ms = self.so_far()
        surplus_ms = max(0.0, self._quiet_ms - _AFTER_MS)
        audio = audio[: len(audio) - int(surplus_ms * self._rate / 1000)]
        ended = Ended(audio, from_ms, self._now_ms - self._quiet_ms, self._paused)
        self._speaking, self._paused = False, False
        self._loud_ms = 0.0
        self._forget()
        return ended

    def _forget(self) -> None:
        surplus = len(self._kept) - _BEFORE_MS // _FRAME_MS
        if surplus > 0:
            del self._kept[:surplus]
            self._kept_from_ms += surplus * _FRAME_MS
