"""The person at the far end of a call: speaks, presses keys, hangs up, has a bad connection."""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import av
import numpy as np

from core.audio import Pcm, ulaw_encode
from dev.speech import CALLER_VOICE, synthesize
from dev.standins.twilio.media.heard import SILENCE, Heard
from dev.standins.twilio.media.playout import BYTES_PER_MS, FRAME
from dev.standins.twilio.media.stream import MediaStream
from dev.standins.twilio.watch import Watch

SAMPLE_RATE = 8000
_SILENCE = base64.b64encode(SILENCE).decode()


class CallOver(Exception):
    """The call is over, so the caller can do nothing more."""


class Line(Protocol):
    """The call that a caller is on."""

    heard: Heard

    @property
    def over(self) -> bool: ...

    @property
    def stream(self) -> MediaStream: ...

    def hang_up(self) -> None: ...


@dataclass(frozen=True)
class Said:
    """The position of an utterance, in ms on the call's clock (that of ``heard``)."""

    start_ms: float
    end_ms: float


class Caller:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._payloads: deque[str] = deque()
        self._spoken = 0
        self._queued = 0
        self._sent_ms: dict[int, float | None] = {}  # by the number of its last frame
        self._watch = Watch()
        self.ended: Callable[[], None] = self._watch.changed

    # --- Speech and keys

    async def say(self, what: str | Pcm | Path) -> Said:
        """Speak a text, 8 kHz samples or a recording; return when all of it has been sent.

        Raises CallOver. Concurrent calls queue. Cancelling does not take back what is queued.
        """
        pcm = await asyncio.to_thread(_samples, what)
        ulaw = ulaw_encode(pcm)
        ulaw += b"\xff" * (-len(ulaw) % FRAME)
        if not ulaw:
            return Said(self._line.heard.ms, self._line.heard.ms)
        frames = [ulaw[at : at + FRAME] for at in range(0, len(ulaw), FRAME)]
        self._payloads.extend(base64.b64encode(frame).decode() for frame in frames)
        self._queued += len(frames)
        end = self._queued
        self._sent_ms[end] = None
        end_ms = await self._watch.until(lambda: self._sent(end), len(frames) / 10 + 30)
        start_ms = end_ms - len(ulaw) / BYTES_PER_MS
        return Said(start_ms, start_ms + len(pcm) / BYTES_PER_MS)

    async def press(self, keys: str, gap_ms: float = 60) -> None:
        """Press keys (0-9, * and #), ``gap_ms`` apart."""
        for index, key in enumerate(keys):
            if index:
                await asyncio.sleep(gap_ms / 1000)
            self._line.stream.press(key)

    def hang_up(self) -> None:
        self._line.hang_up()

    def next_payload(self) -> str:
        """Return the next 20 ms in base64: of what is being said, else silence."""
        if not self._payloads:
            return _SILENCE
        self._spoken += 1
        if self._spoken in self._sent_ms:
            self._sent_ms[self._spoken] = self._line.heard.ms
            self._watch.changed()
        return self._payloads.popleft()

    # --- The connection of the current stream

    def pause_reading(self) -> None:
        """Read nothing more from the server, as a slow reader."""
        self._line.stream.socket.pause_reading()

    def resume_reading(self) -> None:
        self._line.stream.socket.resume_reading()

    def freeze(self) -> None:
        """Leave the connection half open: neither read nor send, and say nothing about it."""
        self._line.stream.freeze()

    def drop(self) -> None:
        """Tear the connection without a close frame."""
        self._line.stream.socket.abort()

    def _sent(self, end: int) -> float | None:
        if self._sent_ms[end] is None and self._line.over:
            raise CallOver
        return self._sent_ms[end]


def _samples(what: str | Pcm | Path) -> Pcm:
    if isinstance(what, str):
        return synthesize(what, CALLER_VOICE, SAMPLE_RATE).pcm
    return recording(what) if isinstance(what, Path) else what


def recording(path: Path) -> Pcm:
    """Return a sound file (WAV, FLAC, …) as samples at 8 kHz."""
    resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
    with av.open(path) as file:
        frames = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
    frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.int16)
