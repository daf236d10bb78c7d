"""Growing 8 kHz audio of one direction of a call; see :mod:`dev.phone_media`."""

from __future__ import annotations

import numpy as np

from core.audio import Pcm

SAMPLE_RATE = 8000
FRAME = 160  # samples: 20 ms, one RTP packet
_PAUSE = 5 * FRAME  # no packet for 100 ms: the far end has paused its stream
_SHIFT = FRAME  # a lasting delay of more than this is a hole in the stream
_SETTLE_S = 3.0  # until then an early burst may still move the whole track


class Track:
    """Growing 16-bit audio of one direction."""

    def __init__(self) -> None:
        self._pcm = bytearray()

    def __len__(self) -> int:
        return len(self._pcm) // 2

    def append(self, pcm: bytes) -> None:
        self._pcm += pcm

    def silence(self, samples: int, at: int | None = None) -> None:
        """Add silence at the end, or put it in before the sample ``at``."""
        position = len(self._pcm) if at is None else 2 * at
        self._pcm[position:position] = bytes(2 * samples)

    def remove(self, samples: int, before: int | None = None) -> None:
        """Take samples off the end, or those that end before the sample ``before``."""
        if samples > 0:
            end = len(self) if before is None else before
            del self._pcm[2 * (end - samples) : 2 * end]

    def view(self, start: int = 0, end: int | None = None) -> Pcm:
        """A copy of the samples from ``start`` to ``end``."""
        stop = None if end is None else 2 * end
        return np.frombuffer(bytes(self._pcm[2 * start : stop]), dtype=np.int16)


class ReceivedTrack(Track):
    """A far end's stream kept in step with the clock; see the module docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.origin: float | None = None  # the time of sample 0, on time.monotonic()
        self.filled = 0  # silence put in for audio that never came, samples
        self._began = 0.0
        self._pause_end = 0  # where the last filled pause ends, and how much of it is ours
        self._pause_fill = 0
        self._window: tuple[float, float] | None = None  # end of it, least origin seen in it
        self._late_from: int | None = None  # where the present lasting delay began

    def arrived(self, pcm: bytes, now: float) -> None:
        """Packets taken from the network by ``now``."""
        samples = len(pcm) // 2
        if self.origin is None:
            self.origin = self._began = now
        if self._pause_fill:
            self._resume(samples, now)
        start = len(self)
        self.append(pcm)
        seen = now - (len(self) - FRAME) / SAMPLE_RATE
        self.origin = min(self.origin, seen)
        self._note_delay(seen, now, start)

    def lost(self, samples: int) -> None:
        """Samples that arrived and were dropped before we could take them."""
        self.silence(samples)
        self.filled += samples

    def nothing_arrived(self, now: float) -> None:
        """Keep the track going while the far end sends nothing."""
        if self.origin is None:
            return
        behind = self._position(now) - len(self)
        if behind > _PAUSE:
            if self._pause_end != len(self):
                self._pause_fill = 0
            self._fill_pause(behind - FRAME)

    def _resume(self, samples: int, now: float) -> None:
        """Audio after a filled pause: new audio, or what was held up all the while."""
        ahead = len(self) + samples - FRAME - self._position(now)
        at_end = self._pause_end == len(self)
        if at_end and ahead < 0:
            self._fill_pause(-ahead)
        elif at_end or ahead > FRAME // 8:
            taken = max(0, min(ahead, self._pause_fill))
            self.remove(taken, before=self._pause_end)
            self.filled -= taken
            self._pause_end -= taken
            self._pause_fill -= taken

    def _fill_pause(self, samples: int) -> None:
        self.silence(samples)
        self.filled += samples
        self._pause_end = len(self)
        self._pause_fill += samples

    def _position(self, now: float) -> int:
        """The index of the sample that is due at ``now``."""
        assert self.origin is not None
        return int((now - self.origin) * SAMPLE_RATE)

    def _note_delay(self, seen: float, now: float, start: int) -> None:
        """Find lasting delays: in a whole second no packet came in time."""
        assert self.origin is not None
        late = seen - self.origin
        if late * SAMPLE_RATE <= _SHIFT:
            self._late_from = None
        elif self._late_from is None:
            self._late_from = start
        if self._window is None or now >= self._window[0]:
            if self._window is not None and self._late_from is not None:
                self._repair(self._window[1] - self.origin, now)
            self._window = (now + 1.0, seen)
        else:
            self._window = (self._window[0], min(self._window[1], seen))

    def _repair(self, late: float, now: float) -> None:
        assert self.origin is not None and self._late_from is not None
        if late * SAMPLE_RATE <= _SHIFT:
            return
        if now - self._began < _SETTLE_S:
            self.origin += late  # the stream began with a burst; what follows sets the pace
        else:
            hole = int(late * SAMPLE_RATE) // FRAME * FRAME
            self.silence(hole, at=self._late_from)
            self.filled += hole
        self._late_from = None
