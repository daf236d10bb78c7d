"""8 kHz audio of one direction of a call, with the time of each sample.

Both tracks only grow at their end, so an index stays valid. Times are
``time.monotonic()`` seconds; :mod:`dev.phone.media` describes their origin.
"""

from __future__ import annotations

import numpy as np

from core.audio import Pcm

SAMPLE_RATE = 8000
FRAME = 160  # samples: 20 ms, one RTP packet

_LATE_S = 0.020  # packets later than this may mean a hole in the stream
_SURE_S = 0.300  # if no packet came in time for this long, there is a hole
_SETTLE_S = 3.0  # a stream this young may have begun with a burst
_BURST_S = 0.250  # the longest such burst


class SentTrack:
    """The sent frames. There is no gap between them, so one origin gives all times."""

    def __init__(self) -> None:
        self.origin: float | None = None  # when sample 0 left
        self._pcm = bytearray()

    def __len__(self) -> int:
        return len(self._pcm) // 2

    def append(self, pcm: bytes) -> None:
        self._pcm += pcm

    def silence(self, samples: int) -> None:
        self._pcm += bytes(2 * samples)

    def remove(self, samples: int) -> None:
        """Remove samples that were discarded before they left."""
        if samples > 0:
            del self._pcm[-2 * samples :]

    def left(self, samples: int, now: float) -> None:
        """Note that ``samples`` have left by ``now``; the earliest sighting sets the origin."""
        if samples >= FRAME:
            seen = now - (samples - FRAME) / SAMPLE_RATE
            self.origin = seen if self.origin is None else min(self.origin, seen)

    def view(self, start: int = 0, end: int | None = None) -> Pcm:
        """Return a copy of the samples from ``start`` to ``end``."""
        return _view(self._pcm, start, end)

    def time_of(self, index: int) -> float | None:
        """Return when a sample left; None if nothing has left."""
        return None if self.origin is None else self.origin + index / SAMPLE_RATE


class ReceivedTrack:
    """The received packets and the holes between them.

    The time of a packet's first sample is the packet's arrival. At the pace of 8000 samples
    a second, the earliest arrival of all sets the stream's origin. A hole is audio that was
    never sent or was lost: for 0.3 s no packet came within 20 ms of its time. If the stream
    catches up later (its packets were only delayed), the hole closes again.
    """

    def __init__(self) -> None:
        self.origin: float | None = None  # when sample 0 arrived
        self._pcm = bytearray()
        self._holes: list[tuple[int, int]] = []  # (index of the sample after it, length)
        self._hole_samples = 0
        self._began = 0.0
        self._last = 0.0
        self._late: tuple[int, float, float] | None = None  # from index, since, least delay

    def __len__(self) -> int:
        """Return the number of samples that arrived, without the holes."""
        return len(self._pcm) // 2

    @property
    def hole_samples(self) -> int:
        """The number of samples of the timeline that never arrived."""
        return self._hole_samples

    def arrived(self, pcm: bytes, now: float) -> None:
        """Append packets that were taken from the network at ``now``."""
        start = len(self)
        self._pcm += pcm
        self._last = now
        # The arrival of sample 0, if this newest packet has arrived just now and in time.
        seen = now - (len(self) + self._hole_samples - FRAME) / SAMPLE_RATE
        if self.origin is None:
            self.origin, self._began = seen, now
        if seen < self.origin:
            seen += self._close_holes(self.origin - seen)
            self.origin = min(self.origin, seen)
        self._look_for_hole(seen - self.origin, start, now)

    def lost(self, samples: int) -> None:
        """Note samples that arrived but were dropped before we could take them."""
        self._open_hole(len(self), samples)

    def idle_s(self, now: float) -> float:
        """Return for how long nothing has arrived."""
        return now - self._last if self.origin is not None else 0.0

    def hole_ms(self, start: int, end: int) -> float:
        """Return the length of the holes before the samples from ``start`` to ``end``, in ms."""
        samples = sum(length for at, length in self._holes if start <= at < end)
        return 1000 * samples / SAMPLE_RATE

    def view(self, start: int = 0, end: int | None = None) -> Pcm:
        """Return a copy of the samples that arrived, without the holes."""
        return _view(self._pcm, start, end)

    def timeline(self) -> Pcm:
        """Return all samples, with silence in the holes: one sample every 1/8000 s."""
        pieces: list[Pcm] = []
        done = 0
        for at, length in self._holes:
            pieces += [self.view(done, at), np.zeros(length, np.int16)]
            done = at
        return np.concatenate([*pieces, self.view(done)])

    def time_of(self, index: int) -> float | None:
        """Return when a sample arrived; None if nothing has arrived."""
        if self.origin is None:
            return None
        before = sum(length for at, length in self._holes if at <= index)
        return self.origin + (index + before) / SAMPLE_RATE

    def index_at(self, time: float) -> int:
        """Return the sample that arrived at a time, or the next one."""
        if self.origin is None:
            return 0
        index = round((time - self.origin) * SAMPLE_RATE)
        for at, length in self._holes:
            if at <= index:
                index = max(at, index - length)
        return max(0, index)

    def _look_for_hole(self, late: float, start: int, now: float) -> None:
        if late <= _LATE_S:
            self._late = None
            return
        at, since, least = self._late or (start, now, late)
        least = min(least, late)
        self._late = at, since, least
        if now - since < _SURE_S:
            return
        assert self.origin is not None
        if now - self._began < _SETTLE_S and least <= _BURST_S and not self._holes:
            self.origin += least  # it began with a burst; later packets set the pace
        else:
            self._open_hole(at, round(least * SAMPLE_RATE))
        self._late = None

    def _open_hole(self, at: int, samples: int) -> None:
        self._holes = sorted([*self._holes, (at, samples)])
        self._hole_samples += samples

    def _close_holes(self, seconds: float) -> float:
        """Shorten the holes by up to ``seconds``, newest first; return the seconds removed."""
        wanted = min(round(seconds * SAMPLE_RATE), self._hole_samples)
        left = wanted
        holes = list(self._holes)
        while left:
            at, length = holes.pop()
            if length > left:
                holes.append((at, length - left))
                left = 0
            else:
                left -= length
        self._holes = holes
        self._hole_samples -= wanted
        return wanted / SAMPLE_RATE


def _view(pcm: bytearray, start: int, end: int | None) -> Pcm:
    stop = None if end is None else 2 * end
    return np.frombuffer(bytes(pcm[2 * start : stop]), dtype=np.int16)
