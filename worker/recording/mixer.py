"""Brings caller and agent onto one clock, as frames of a stereo recording.

Left is the caller, right the agent, or the human who has taken over. Positions are samples since
the answer, as the far end heard them. What may not be kept is silence on both channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import Final

import numpy as np
import numpy.typing as npt

from core.audio import Pcm
from core.sound.arrivals import SOON_S
from core.sound.reports import SoundReport
from worker.privacy.gate import Span
from worker.recording.received import Received
from worker.recording.resample import RATE
from worker.recording.sound_times import SoundTimes
from worker.recording.track import Track
from worker.timing.call_clock import CallClock

Frames = npt.NDArray[np.int16]
"""Samples of shape (n, 2): caller, agent or human."""


PLACED_S: Final = 3.0
"""Audio is placed this much later: by then the far end has reported when it said and heard it."""


class Mixer:
    """The frames of one call that were not taken yet. ``silent`` returns the spans to leave out."""

    def __init__(self, clock: CallClock, rate: int, silent: Callable[[], Iterable[Span]]) -> None:
        """``rate`` is that of the audio that is received."""
        self._clock = clock
        self._silent = silent
        self._from_caller, self._from_human = Received(rate), Received(rate)
        self._times = SoundTimes(RATE)
        self._said: deque[tuple[float, Pcm]] = deque()
        self._played: deque[tuple[float, Pcm, bool]] = deque()
        self._human: deque[tuple[float, Pcm]] = deque()
        self._caller, self._other = Track(), Track()

    def heard(self, pcm: Pcm, arrived: float) -> None:
        """The next piece of the caller's audio arrived at that time (Unix seconds)."""
        self._from_caller.push(pcm, arrived)

    def heard_human(self, pcm: Pcm, arrived: float) -> None:
        """The next piece of the human's audio arrived at that time (Unix seconds)."""
        self._from_human.push(pcm, arrived)

    def played(self, left: float, pcm: Pcm, anew: bool) -> None:
        """A piece of the agent's voice at RATE left at that time; see ``VoiceTap``."""
        self._times.heard(left, pcm)
        self._played.append((left, pcm, anew))

    def report(self, report: SoundReport) -> None:
        """The far end's line reports what was said and heard there, and when."""
        self._times.report(report)

    def settle(self, now: float, *, rest: bool = False) -> None:
        """Place what came and left until PLACED_S ago, or all the ``rest``."""
        came_before = inf if rest else now - SOON_S
        for at, pcm in self._from_caller.settled(came_before):
            self._times.said(at, pcm)
            self._said.append((at, pcm))
        self._human.extend(self._from_human.settled(came_before))
        delays = self._times.measured(now - SOON_S)
        if delays is not None:
            self._clock.measured(*delays)
        self._place(inf if rest else now - PLACED_S)

    def _place(self, before: float) -> None:
        while self._said and self._said[0][0] < before:
            at, pcm = self._said.popleft()
            self._caller.follow(self._position(at - self._clock.said_delay_s), pcm)
        while self._played and self._played[0][0] < before:
            at, pcm, anew = self._played.popleft()
            self._other.follow(self._position(at + self._clock.heard_delay_s), pcm, anew=anew)
        while self._human and self._human[0][0] < before:
            at, pcm = self._human.popleft()
            # The caller hears the human about when we do: LiveKit sends it to both.
            self._other.follow(self._position(at), pcm)

    @property
    def taken(self) -> int:
        """The number of frames that were taken."""
        return self._caller.start

    def take(self, until: int, redacted: Iterable[tuple[int, int]] = ()) -> tuple[Frames, bool]:
        """Return the frames up to a position, and whether any of them may be kept.

        ``redacted`` spans are silent on both channels, in ms on the call's clock.
        """
        begin = self.taken
        kept = np.ones(max(0, until - begin), np.bool_)
        for first, last in self._silent_positions():
            kept[max(0, first - begin) : None if last is None else max(0, last - begin)] = False
        frames = np.stack((self._caller.take(until), self._other.take(until)), axis=1)
        frames[~kept] = 0
        for from_ms, to_ms in redacted:
            first, last = (max(0, ms * RATE // 1000 - begin) for ms in (from_ms, to_ms))
            frames[first:last] = 0
        return frames, bool(kept.any())

    def _silent_positions(self) -> Iterable[tuple[int, int | None]]:
        """The spans with the audio that was on its way when they began and ended."""
        longest_s = max(self._clock.said_delay_s, self._clock.heard_delay_s, 0.0)
        margin = round(longest_s * RATE) + 1
        for first, last in self._silent():
            end = None if last is None else last * RATE // 1000 + margin
            yield first * RATE // 1000 - margin, end

    def _position(self, at: float) -> int:
        """Return the position of a far end's time (Unix seconds)."""
        assert self._clock.answered_at is not None
        return round((at - self._clock.answered_at) * RATE)
