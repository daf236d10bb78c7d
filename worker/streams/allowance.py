"""How much a far end may send: one client must not take the worker's time from the others."""

from __future__ import annotations


class Allowance:
    """A token bucket: ``per_s`` on average, up to ``burst`` at once.

    The burst covers what a network held back: it comes all at once when the network is back.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._at: float | None = None

    def take(self, amount: float, now: float) -> bool:
        """Return False if that much is too much now; nothing is taken then. ``now`` in seconds."""
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if amount > self._left:
            return False
        self._left -= amount
        return True
