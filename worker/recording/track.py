"""One channel of a recording: the samples that are not written yet, and where pieces belong.

Positions are samples since the answer.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from core.audio import Pcm
from worker.recording.resample import RATE
from worker.timing.voiced import is_voiced

_GAP: Final = RATE * 60 // 1000
"""A piece that belongs this much later than the last one's end comes after a gap."""

_CLOSE: Final = RATE * 2 // 1000
"""Times are not measured more exactly than this."""

_SLIP: Final = RATE * 14 // 1000
"""A piece that belongs further away than this comes after audio that was lost or came too late: the
far end's line moves by packets of 20 ms."""

_QUIET_SHARE: Final = 20  # of a piece that is not voice, so much at most is inserted or dropped


class Track:
    """What is put is kept until it is taken; where nothing is put is silence."""

    def __init__(self) -> None:
        self.start = 0
        """The first position that was not taken."""
        self._samples = np.zeros(RATE, np.int16)
        self._end: int | None = None  # of the last piece

    def follow(self, wanted: int, pcm: Pcm, *, anew: bool = False) -> None:
        """Put the next piece of a signal, which belongs at ``wanted``.

        Pieces follow each other without a break. If they belong further and further away, because
        a clock drifts, single samples are inserted or dropped; if they do all at once, because a
        packet was lost or waited, all that is missing or too much. ``anew``: the piece begins a
        stretch of its own, and belongs where it belongs unless the last one is still there.
        """
        if self._end is None or wanted - self._end >= _GAP:
            at = wanted
        elif anew:
            at = max(wanted, self._end)
        else:
            at, pcm = self._end, _stretched(pcm, wanted - self._end)
        self._end = at + len(pcm)
        self._put(at, pcm)

    def _put(self, at: int, pcm: Pcm) -> None:
        late = max(0, self.start - at)
        pcm, offset = pcm[late:], at + late - self.start
        missing = offset + len(pcm) - len(self._samples)
        if missing > 0:
            more = np.zeros(max(missing, RATE), np.int16)
            self._samples = np.concatenate((self._samples, more))
        self._samples[offset : offset + len(pcm)] = pcm

    def take(self, until: int) -> Pcm:
        """Return the samples from ``start`` to ``until``, and forget them."""
        count = max(0, until - self.start)
        taken = self._samples[:count].copy()
        self._samples = self._samples[count:].copy()
        self.start += count
        return np.concatenate((taken, np.zeros(count - len(taken), np.int16)))


def _stretched(pcm: Pcm, error: int) -> Pcm:
    """Return a piece that is longer or shorter, so that ``error`` becomes smaller.

    Voice gets or loses one sample, where it is closest to zero; silence several. After a slip,
    either gets or loses it all.
    """
    if abs(error) <= _CLOSE or len(pcm) < 2:
        return pcm
    if abs(error) >= _SLIP:
        count = min(abs(error), len(pcm) - 1)
    else:
        most = 1 if is_voiced(pcm) else max(1, len(pcm) // _QUIET_SHARE)
        count = min(most, abs(error) - _CLOSE)
    # abs of the most negative sample would be negative
    at = int(np.argmin(np.abs(pcm[: len(pcm) - count].astype(np.int32))))
    if error < 0:
        return np.delete(pcm, slice(at, at + count))
    return np.insert(pcm, at, np.full(count, pcm[at]))
