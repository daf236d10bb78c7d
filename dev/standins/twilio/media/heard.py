"""The audio that a caller heard."""

from __future__ import annotations

from core.audio import Pcm, ulaw_decode
from dev.standins.twilio.media.playout import BYTES_PER_MS, FRAME
from dev.standins.twilio.watch import Watch

SILENCE = b"\xff" * FRAME
"""20 ms of µ-law silence."""
_LOUD = 500  # of 32767; below it is silence and the noise of a codec


class Heard:
    """A recording on the call's clock: it begins at the answer, silence where nothing came.

    Positions are ms since the answer. Byte ``8 * ms`` of ``ulaw`` is what was heard then.
    """

    def __init__(self) -> None:
        self.ulaw = bytearray()
        self._watch = Watch()

    @property
    def ms(self) -> float:
        """The length of the recording."""
        return len(self.ulaw) / BYTES_PER_MS

    def add(self, ulaw: bytes) -> None:
        """Add 20 ms: the audio, then silence if it is shorter."""
        self.ulaw += ulaw + SILENCE[len(ulaw) :] if ulaw else SILENCE
        self._watch.changed()

    def pad_to(self, ms: float) -> None:
        """Add silence up to ``ms``, in whole frames."""
        frames = round((ms - self.ms) * BYTES_PER_MS / FRAME)
        self.ulaw += SILENCE * max(0, frames)

    def pcm(self, from_ms: float = 0, to_ms: float | None = None) -> Pcm:
        """Return samples at 8 kHz of the part."""
        end = len(self.ulaw) if to_ms is None else int(to_ms * BYTES_PER_MS)
        return ulaw_decode(bytes(self.ulaw[int(from_ms * BYTES_PER_MS) : end]))

    async def until_sound(self, after_ms: float = 0, timeout_s: float = 10) -> float:
        """Return when the first sound at or after ``after_ms`` was heard; wait for it.

        Raises TimeoutError.
        """
        seen = after_ms

        def first() -> float | None:
            nonlocal seen
            loud = abs(self.pcm(seen).astype(int)) > _LOUD
            if loud.any():
                return seen + int(loud.argmax()) / BYTES_PER_MS
            seen = max(seen, self.ms)
            return None

        return await self._watch.until(first, timeout_s)

    async def until_quiet(self, for_ms: float = 500, timeout_s: float = 30) -> float:
        """Wait until nothing has been heard for ``for_ms``. Return where the last sound ended.

        Raises TimeoutError.
        """

        def last() -> float | None:
            begin = max(0.0, self.ms - for_ms)
            quiet = self.ms >= for_ms and not (abs(self.pcm(begin).astype(int)) > _LOUD).any()
            return begin if quiet else None

        return await self._watch.until(last, timeout_s)
