"""The queue of audio that Twilio plays to the caller, without any clock or I/O."""

from __future__ import annotations

from collections import deque

FRAME = 160
"""Bytes of µ-law at 8 kHz in 20 ms."""
BYTES_PER_MS = 8


class Playout:
    """Audio is played in order, a frame at a time. Marks become due when all before is played."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
        """The longest that the queue has been."""
        self._audio = bytearray()
        self._marks: deque[tuple[int, str]] = deque()
        self._begun = 0  # bytes of all audio whose playing has begun
        self._ended = 0  # bytes of all audio that has been played

    @property
    def queued_ms(self) -> float:
        return len(self._audio) / BYTES_PER_MS

    @property
    def outstanding(self) -> int:
        """Marks that have not been echoed."""
        return len(self._marks)

    def add(self, ulaw: bytes) -> None:
        self._audio += ulaw
        self.longest_ms = max(self.longest_ms, self.queued_ms)

    def mark(self, name: str) -> list[str]:
        """Add a mark behind the audio queued so far. Return the marks that are due now."""
        self._marks.append((self._begun + len(self._audio), name))
        return self._due()

    def finish_frame(self) -> list[str]:
        """The frame that was taken last has been played. Return the marks that are due now."""
        self._ended = self._begun
        return self._due()

    def take(self) -> bytes:
        """Begin to play the next frame: up to 160 bytes, none when the queue is empty."""
        frame = bytes(self._audio[:FRAME])
        del self._audio[:FRAME]
        self._begun += len(frame)
        return frame

    def clear(self) -> list[str]:
        """Drop the queue. Return all outstanding marks: they are echoed at once."""
        self._audio.clear()
        names = [name for _, name in self._marks]
        self._marks.clear()
        return names

    def _due(self) -> list[str]:
        names = []
        while self._marks and self._marks[0][0] <= self._ended:
            names.append(self._marks.popleft()[1])
        return names
