"""Brings caller and agent onto one clock, as frames of a stereo recording.

Left is the caller, right the agent. Positions are samples since the answer, as the far end heard
them. What may not be kept is silence on both channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from core.audio import Pcm
from worker.privacy.gate import Span
from worker.recording.arrivals import Arrivals
from worker.recording.resample import RATE, Resampler
from worker.recording.track import Track
from worker.timing.call_clock import CallClock

Frames = npt.NDArray[np.int16]
"""Samples of shape (n, 2): caller, agent."""


class Mixer:
    """The frames of one call that were not taken yet. ``silent`` returns the spans to leave out."""

    def __init__(self, clock: CallClock, rate: int, silent: Callable[[], Iterable[Span]]) -> None:
        """``rate`` is the caller's."""
        self._clock = clock
        self._silent = silent
        self._arrivals = Arrivals(rate)
        self._resampler = Resampler(rate)
        self._resampled = 0
        self._rate = rate
        self._heard = 0  # of the caller, samples at ``rate``
        self._caller, self._agent = Track(), Track()

    def heard(self, pcm: Pcm, arrived: float) -> None:
        """The next piece of the caller's audio arrived at that time (Unix seconds)."""
        self._arrivals.push(pcm, arrived)

    def played(self, left: float, pcm: Pcm, anew: bool) -> None:
        """A piece of the agent's voice at RATE left at that time; see ``VoiceTap``."""
        self._agent.follow(self._position(left + self._clock.one_way_s), pcm, anew=anew)

    def settle(self, before: float) -> None:
        """Place what arrived of the caller ``before`` that time."""
        for sent, pcm in self._arrivals.settled(before):
            # The resampler lags behind: its next sample is an earlier one.
            behind_s = self._heard / self._rate - self._resampled / RATE
            resampled = self._resampler.push(pcm)
            self._heard += len(pcm)
            self._resampled += len(resampled)
            position = self._position(sent - behind_s - self._clock.one_way_s)
            self._caller.follow(position, resampled)

    def blank(self, from_ms: int, to_ms: int) -> None:
        """Make a span silent, as far as it was not taken."""
        for track in (self._caller, self._agent):
            track.blank(from_ms * RATE // 1000, to_ms * RATE // 1000)

    @property
    def taken(self) -> int:
        """The number of frames that were taken."""
        return self._caller.start

    def take(self, until: int) -> tuple[Frames, bool]:
        """Return the frames up to a position, and whether any of them may be kept."""
        begin = self.taken
        kept = np.ones(max(0, until - begin), np.bool_)
        for first, last in self._silent_positions():
            kept[max(0, first - begin) : None if last is None else max(0, last - begin)] = False
        frames = np.stack((self._caller.take(until), self._agent.take(until)), axis=1)
        frames[~kept] = 0
        return frames, bool(kept.any())

    def _silent_positions(self) -> Iterable[tuple[int, int | None]]:
        """The spans with the audio that was on its way when they began and ended."""
        margin = round(self._clock.one_way_s * RATE) + 1
        for first, last in self._silent():
            end = None if last is None else last * RATE // 1000 + margin
            yield first * RATE // 1000 - margin, end

    def _position(self, at: float) -> int:
        """Return the position of a far end's time (Unix seconds)."""
        assert self._clock.answered_at is not None
        return round((at - self._clock.answered_at) * RATE)
