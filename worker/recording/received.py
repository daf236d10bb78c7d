"""One participant's audio as it arrives, at the recording's rate."""

from __future__ import annotations

from collections.abc import Iterator

from core.audio import Pcm
from core.sound.arrivals import Arrivals
from worker.recording.resample import RATE, Resampler


class Received:
    """The audio of a participant at ``rate`` Hz that was not yielded yet. Times are in seconds."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._arrivals = Arrivals(rate)
        self._resampler = Resampler(rate)
        self._taken = 0  # samples at ``rate``
        self._resampled = 0  # samples at RATE

    def push(self, pcm: Pcm, arrived: float) -> None:
        """Add the next piece."""
        self._arrivals.push(pcm, arrived)

    def settled(self, before: float) -> Iterator[tuple[float, Pcm]]:
        """Yield the pieces that arrived ``before`` at RATE, as ``Arrivals`` does."""
        for sent, pcm in self._arrivals.settled(before):
            # The resampler lags behind: its next sample is an earlier one.
            behind_s = self._taken / self._rate - self._resampled / RATE
            resampled = self._resampler.push(pcm)
            self._taken += len(pcm)
            self._resampled += len(resampled)
            yield sent - behind_s, resampled
