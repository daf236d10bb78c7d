"""The call's clock: milliseconds since the answer, as the far end said and heard them.

The worker gets the caller's audio later than it was said, and the caller hears the agent's later
than it left. The line measures both delays together, so half of their sum is taken off the one and
added to the other. If they are not equal, both channels are shifted by the same time, and still
line up with each other. Where both delays are measured by themselves (``measured``), they count.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Protocol

_KEPT = 5  # measurements; the median of them is not moved by a single stall


class Delays(Protocol):
    """The part of a worker.line.Line that says how long audio takes."""

    @property
    def delay_ms(self) -> float | None: ...

    @property
    def usual_delay_ms(self) -> float: ...

    @property
    def hidden_delay_ms(self) -> tuple[float, float]: ...


class CallClock:
    """The line's ``delay_ms`` is asked at every conversion; the usual one serves until it is known.

    Times are Unix seconds. Before the answer ``now_ms`` is 0, and nothing was said or heard.
    """

    def __init__(self, line: Delays, *, clock: Callable[[], float] = time.time) -> None:
        self._line = line
        self._clock = clock
        self._measured: deque[float] = deque(maxlen=_KEPT)
        self._each_s: tuple[float, float] | None = None
        self._answered_at: float | None = None

    def answered(self, at: float) -> None:
        """Set the time that is 0 ms."""
        self._answered_at = at

    @property
    def answered_at(self) -> float | None:
        return self._answered_at

    def measured(self, said_s: float, heard_s: float) -> None:
        """Set how long the far end's audio takes to here, and ours to there."""
        self._each_s = said_s, heard_s

    @property
    def said_delay_s(self) -> float:
        """How long the far end's audio takes to here."""
        return self._one_way_s(0)

    @property
    def heard_delay_s(self) -> float:
        """How long our audio takes to the far end."""
        return self._one_way_s(1)

    @property
    def both_ways_ms(self) -> float | None:
        """The delay from the far end to here and back, in ms; None before it is known."""
        if self._each_s is None and self._line.delay_ms is None:
            return None
        return (self.said_delay_s + self.heard_delay_s) * 1000

    def _one_way_s(self, way: int) -> float:
        if self._each_s is not None:
            return self._each_s[way]
        delay_ms = self._line.delay_ms
        if delay_ms is not None and (not self._measured or self._measured[-1] != delay_ms):
            self._measured.append(delay_ms)
        both_ms = median(self._measured) if self._measured else self._line.usual_delay_ms
        return (both_ms / 2 + self._line.hidden_delay_ms[way]) / 1000

    def now_ms(self) -> int:
        """Return the time since the answer."""
        return 0 if self._answered_at is None else max(0, self._ms(self._clock()))

    def said_ms(self, arrived: float) -> int | None:
        """Return when the far end said what arrived here at that time."""
        return None if self._answered_at is None else max(0, self._ms(arrived - self.said_delay_s))

    def heard_ms(self, left: float) -> int | None:
        """Return when the far end heard what left here at that time."""
        return None if self._answered_at is None else max(0, self._ms(left + self.heard_delay_s))

    def _ms(self, at: float) -> int:
        assert self._answered_at is not None
        return round((at - self._answered_at) * 1000)
