"""Finds how long audio takes in the SIP stack from the transmit buffer to the wire.

One thread of the stack takes a frame from the buffer every 20 ms (silence if it is empty), another
sends one. If a frame is not there yet when a packet is due, none is sent then or later, so that
the queue between both is longer by it for the rest of the call. Nothing shows that queue but the
counters at both ends, and that of the packets comes with the far end's RTCP reports only.
"""

from __future__ import annotations

from collections import deque
from typing import Final

PACKET_S: Final = 0.02
USUAL_S: Final = 0.02
"""Both threads begin at once, so a frame comes too late soon (measured)."""

_EXACT_S: Final = 0.002  # as a frame's moment is known
_LOOKS: Final = 100
_FEW: Final = 20  # looks, before which the moment of a frame is not known
_MOST: Final = 30  # packets; the stack drops older ones


class ToWire:
    """``seconds``: the time from the buffer to the wire; ``USUAL_S`` until it is known."""

    def __init__(self) -> None:
        self.seconds = USUAL_S
        self._zeros: deque[float] = deque(maxlen=_LOOKS)
        self._bounds: tuple[float, float] | None = None
        self._apart = 0  # between the counters, besides the queue
        self._longer = 0  # packets, by the last count

    def taken(self, frames: int, now: float) -> None:
        """Note the number of frames taken from the buffer, now or before (seconds)."""
        self._zeros.append(now - frames * PACKET_S)

    def counted(self, frames: int, packets: int, now: float) -> None:
        """Note the frames taken from the buffer, and the packets sent."""
        if len(self._zeros) < _FEW:
            return
        # The first look that sees a frame comes soon after it.
        since_s = now - frames * PACKET_S - min(self._zeros)
        queued = frames - packets - self._apart
        if not 0 <= queued <= _MOST:
            # A counter began anew, or counts what is no audio (keys): the queue stays.
            self._apart += queued - round((self.seconds - since_s) / PACKET_S + 0.5)
            return
        # The last packet was taken ``queued`` frames before the last one, at the latest.
        high = min(max(since_s, 0.0), PACKET_S) + queued * PACKET_S + _EXACT_S
        low = high - PACKET_S - 2 * _EXACT_S
        if self._bounds is None:
            self._believe(low, high)
            return
        # The bounds known before are moved by as many packets as it takes.
        longer = 0
        if low > self._bounds[1] or high < self._bounds[0]:
            longer = round((low + high - sum(self._bounds)) / 2 / PACKET_S)
        before = [each + longer * PACKET_S for each in self._bounds]
        if longer == 0 or longer == self._longer:  # once, a packet may just have been on its way
            self._believe(max(low, before[0]), min(high, before[1]))
            longer = 0
        self._longer = longer

    def anew(self) -> None:
        """The next counts are to be compared with each other only: the queue stays."""
        self._apart = -10 * _MOST

    def _believe(self, low: float, high: float) -> None:
        if low <= high:
            self._bounds = low, high
            self.seconds = max(0.0, (low + high) / 2)
