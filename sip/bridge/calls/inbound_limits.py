"""Limits on incoming calls that are not yet answered. Sans-I/O.

Anyone who reaches the SIP port can send INVITEs, and each admitted one costs a room, its native
half and some 50 ms of CPU. So calls are counted before any of that is created.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits. Each trunk has its share, so that one trunk's callers cannot take all places."""

    unanswered: int = 60
    unanswered_of_trunk: int = 20
    # A carrier sends all of its calls from a few addresses.
    per_second_of_source: float = 10.0
    burst_of_source: int = 20


# Source addresses can be forged, so only the latest ones are remembered.
SOURCES_KEPT: Final = 1000


class Admission:
    """Gives a ticket to each incoming call within the limits."""

    def __init__(
        self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits or Limits()
        self._clock = clock
        self._unanswered = 0
        self._of_trunk: Counter[str] = Counter()
        self._sources: OrderedDict[str, tuple[float, float]] = OrderedDict()

    @property
    def unanswered(self) -> int:
        return self._unanswered

    def ticket(self) -> Ticket | None:
        """Return a ticket; None if the limit of unanswered calls is reached."""
        if self._unanswered >= self.limits.unanswered:
            return None
        self._unanswered += 1
        return Ticket(self)

    def slower(self, source_ip: str) -> bool:
        """Count a call from this address; True if it exceeds its rate (a token bucket)."""
        now = self._clock()
        burst = float(self.limits.burst_of_source)
        left, then = self._sources.pop(source_ip, (burst, now))
        left = min(burst, left + (now - then) * self.limits.per_second_of_source)
        refused = left < 1
        self._sources[source_ip] = (left if refused else left - 1, now)
        while len(self._sources) > SOURCES_KEPT:
            self._sources.popitem(last=False)
        return refused

    def _enter(self, trunk_id: str) -> bool:
        if self._of_trunk[trunk_id] >= self.limits.unanswered_of_trunk:
            return False
        self._of_trunk[trunk_id] += 1
        return True

    def _leave(self, trunk_id: str | None) -> None:
        self._unanswered -= 1
        if trunk_id is not None:
            self._of_trunk[trunk_id] -= 1
            self._of_trunk += Counter()  # drops trunks without calls


class Ticket:
    """One call's place among the unanswered, until ``give_back``."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._trunk_id: str | None = None
        self._given_back = False

    def enter_trunk(self, trunk_id: str) -> bool:
        """Count the call for its trunk; False if the trunk's limit is reached."""
        if not self._admission._enter(trunk_id):
            return False
        self._trunk_id = trunk_id
        return True

    def give_back(self) -> None:
        """Free the place: the call was answered, or is over. Idempotent."""
        if not self._given_back:
            self._given_back = True
            self._admission._leave(self._trunk_id)
