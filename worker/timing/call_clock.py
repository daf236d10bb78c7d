"""The call's clock: milliseconds since the answer, as the far end said and heard them.

The worker gets the caller's audio later than it was said, and the caller hears the agent's later
than it left. The line measures both delays together, so half of their sum is taken off the one and
added to the other. If they are not equal, both channels are shifted by the same time, and still
line up with each other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

_KEPT = 5  # measurements; the median of them is not moved by a single stall


class CallClock:
    """``delay_ms`` is the line's, asked at every conversion; ``usual_ms`` serves until it is known.

    Times are Unix seconds. Before the answer ``now_ms`` is 0, and nothing was said or heard.
    """

    def __init__(
        self,
        delay_ms: Callable[[], float | None],
        *,
        usual_ms: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._delay_ms = delay_ms
        self._usual_ms = usual_ms
        self._clock = clock
        self._measured: deque[float] = deque(maxlen=_KEPT)
        self._answered_at: float | None = None

    def answered(self, at: float) -> None:
        """Set the time that is 0 ms."""
        self._answered_at = at

    @property
    def answered_at(self) -> float | None:
        return self._answered_at

    @property
    def one_way_s(self) -> float:
        """The delay of one direction."""
        delay_ms = self._delay_ms()
        if delay_ms is not None and (not self._measured or self._measured[-1] != delay_ms):
            self._measured.append(delay_ms)
        return (median(self._measured) if self._measured else self._usual_ms) / 2000

    def now_ms(self) -> int:
        """Return the time since the answer."""
        return 0 if self._answered_at is None else max(0, self._ms(self._clock()))

    def said_ms(self, arrived: float) -> int | None:
        """Return when the far end said what arrived here at that time."""
        return None if self._answered_at is None else max(0, self._ms(arrived - self.one_way_s))

    def heard_ms(self, left: float) -> int | None:
        """Return when the far end heard what left here at that time."""
        return None if self._answered_at is None else max(0, self._ms(left + self.one_way_s))

    def _ms(self, at: float) -> int:
        assert self._answered_at is not None
        return round((at - self._answered_at) * 1000)
