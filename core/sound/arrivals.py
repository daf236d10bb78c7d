"""Finds when received audio was sent, from when it arrived.

Sent audio is continuous, and arrives later than that by a delay that varies: a busy event loop or
network lets pieces wait and then come in a burst. A piece that waited is followed by ones that
did not, so the least delay of those that came soon after it is the right one. Where audio was lost,
the least delay rises for good.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from core.audio import Pcm

SOON_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Piece:
    pcm: Pcm
    arrived: float
    zero: float  # when the stream would have begun if this piece came without delay


class Arrivals:
    """The pieces of one stream at ``rate`` Hz that were not yielded yet. Times are in seconds."""

    def __init__(self, rate: int, soon_s: float = SOON_S) -> None:
        self._rate = rate
        self._soon_s = soon_s
        self._pushed = 0
        self._yielded = 0
        self._pieces: deque[_Piece] = deque()

    def push(self, pcm: Pcm, arrived: float) -> None:
        """Add the stream's next piece."""
        self._pushed += len(pcm)
        self._pieces.append(_Piece(pcm, arrived, arrived - self._pushed / self._rate))

    def settled(self, before: float) -> Iterator[tuple[float, Pcm]]:
        """Yield the pieces that arrived ``before``, each with when its first sample was sent.

        Give a time that is at least ``soon_s`` ago, unless the stream is over.
        """
        while self._pieces and self._pieces[0].arrived < before:
            first = self._pieces[0]
            soon = first.arrived + self._soon_s
            zero = min(piece.zero for piece in self._pieces if piece.arrived <= soon)
            self._pieces.popleft()
            yield zero + self._yielded / self._rate, first.pcm
            self._yielded += len(first.pcm)
