"""The sent and the received audio of one phone call, on one clock.

Both directions are kept as they went over the wire, sample by sample at 8 kHz:

- **Sent**: baresip takes one 20 ms frame from its buffer per packet, or sends silence
  if the buffer is empty, and counts those silent frames. The track consists of the frames
  we wrote and the counted silence between them, so no position in it is an estimate.
- **Received**: every decoded packet, in order, as it arrives (no playout delay). Where
  packets are missing (the far end's stream paused, or they were lost), the timeline has
  a hole of silence, so that it keeps step with the clock (:mod:`dev.phone.tracks`).

The clock starts at the answer. The offset of each track on it follows from the times at
which the pump saw frames leave and packets arrive: the earliest sighting of all is the
least delayed one, so the offset settles to within a few milliseconds in the first second
and stays. Within a track, positions are exact to the sample. Between the two tracks of a
call, and between two phones, clicks sent both ways agree to 2 ms on an idle machine after
baresip's own 4 ms from buffer to wire (``tests/dev/phone/test_audio.py`` measures it).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from baresip import AudioNotActive, AudioRestarted, AudioStats
from baresip.audio import CallAudio

from core.audio import Pcm
from dev.phone.tracks import FRAME, SAMPLE_RATE, ReceivedTrack, SentTrack

logger = logging.getLogger(__name__)
_TICK_S = 0.010
# How much is written ahead of the wire: enough for a machine or an interpreter that is busy
# for a second (baresip buffers two). It costs nothing, as stopping discards it.
_AHEAD = SAMPLE_RATE
_READ_BYTES = 2 * 10 * FRAME
_IDLE_TICKS = 5  # while nothing is played, frames are counted every 50 ms


@dataclass
class _Playback:
    """One utterance that is being sent."""

    pcm: bytes
    written: int = 0  # bytes handed to baresip
    start: int | None = None  # its first sample in the sent track
    end: int | None = None  # after its last sample


class CallMedia:
    """The media of one established call. The pump's thread runs :meth:`tick`."""

    def __init__(self, audio: CallAudio, clock_zero: float) -> None:
        self.sent = SentTrack()
        self.received = ReceivedTrack()
        self.zero = clock_zero  # time.monotonic() of the answer
        self.starved_frames = 0  # silent frames inside an utterance: the pump came too late
        self._audio = audio
        self._lock = threading.Lock()
        self._silent_frames = 0
        self._flushed = 0
        self._dropped = 0
        self._ticks = 0
        self._looked = clock_zero
        self._playback: _Playback | None = None
        self._waiters: set[asyncio.Event] = set()
        self.over = False

    # --- the pump's thread

    def tick(self, now: float) -> bool:
        """Move audio in both directions; return True if anything changed."""
        with self._lock:
            if self.over:
                return False
            try:
                return self._receive(now) | self._send(now)
            except AudioRestarted:
                # A re-INVITE replaced the streams; their counters start from zero.
                self._silent_frames = self._flushed = self._dropped = 0
                if self.sent.origin is not None:
                    due = int((now - self.sent.origin) * SAMPLE_RATE) // FRAME * FRAME
                    self.sent.silence(max(0, due - len(self.sent)))
            except AudioNotActive:
                pass  # not established yet, or already ended: the call's events say which
            return False

    def _receive(self, now: float) -> bool:
        self._looked = now
        pcm = piece = self._audio.read(_READ_BYTES)
        while len(piece) == _READ_BYTES:
            piece = self._audio.read(_READ_BYTES)
            pcm += piece
        if pcm:
            self.received.arrived(pcm, now)
        return True

    def _send(self, now: float) -> bool:
        self._ticks += 1
        if self._playback is None and self._ticks % _IDLE_TICKS:
            return False
        stats = self._look_at_counters()
        flushed = stats.tx_flushed_bytes - self._flushed
        if flushed:
            self.sent.remove(flushed // 2)
            self._flushed = stats.tx_flushed_bytes
        dropped = _dropped_bytes(stats)
        if dropped != self._dropped:
            self.received.lost((dropped - self._dropped) // 2)
            self._dropped = dropped
        self._account_silence(stats.tx_silence_frames)
        consumed = len(self.sent) - stats.tx_buffered // 2
        self.sent.left(consumed, now)
        playback = self._playback
        if playback is None:
            return False
        if playback.end is not None:
            if consumed >= playback.end:
                self._playback = None
            return True
        room = 2 * _AHEAD - stats.tx_buffered
        chunk = playback.pcm[playback.written : playback.written + max(0, room)]
        chunk = chunk[: len(chunk) // (2 * FRAME) * 2 * FRAME]
        if chunk:
            taken = self._audio.write(chunk)
            # Silent frames counted by now left before the chunk that we have just written.
            silent = self._account_silence(self._look_at_counters().tx_silence_frames)
            if playback.start is None:
                playback.start = len(self.sent)
            else:
                self.starved_frames += silent
            self.sent.append(chunk[:taken])
            playback.written += taken
            if playback.written == len(playback.pcm):
                playback.end = len(self.sent)
        return True

    def _look_at_counters(self) -> AudioStats:
        """Return the counters. Raise AudioRestarted if they restarted from zero.

        ``stats()`` does not report new streams, and prevents the next read from doing so.
        """
        stats = self._audio.stats()
        if (
            stats.tx_silence_frames < self._silent_frames
            or stats.tx_flushed_bytes < self._flushed
            or _dropped_bytes(stats) < self._dropped
        ):
            raise AudioRestarted("the counters of the call's audio restarted from zero")
        return stats

    def _account_silence(self, frames: int) -> int:
        new = frames - self._silent_frames
        self.sent.silence(new * FRAME)
        self._silent_frames = frames
        return new

    # --- the event loop

    async def play(self, pcm: bytes) -> tuple[int, int]:
        """Send PCM (8 kHz, 16 bit) and wait until its last frame has left.

        Cancelling stops at once: frames that have not left are discarded.

        Returns:
            The first sample and the one after the last, as indices of the sent track.
        """
        padding = -len(pcm) % (2 * FRAME)  # whole frames, so that nothing is padded midway
        playback = _Playback(pcm + bytes(padding))
        with self._lock:
            if self._playback is not None:
                raise RuntimeError("this call is already playing something")
            self._playback = playback
        try:
            await self.wait_for(lambda: self._playback is not playback or self.over)
        except asyncio.CancelledError:
            with self._lock:
                if self._playback is playback:
                    self._playback = None
                    with contextlib.suppress(AudioNotActive, AudioRestarted):
                        self._audio.flush_tx()
            raise
        start = len(self.sent) if playback.start is None else playback.start
        end = len(self.sent) if playback.end is None else playback.end
        return start, end

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is checked whenever audio has moved."""
        changed = asyncio.Event()
        self._waiters.add(changed)
        try:
            while not condition():
                await changed.wait()
                changed.clear()
        finally:
            self._waiters.discard(changed)

    async def moved(self) -> None:
        """Wait until audio has moved, in either direction."""
        looks = iter((False, True))
        await self.wait_for(lambda: next(looks))

    def wake(self) -> None:
        """Let every waiter check its condition again."""
        for waiter in self._waiters:
            waiter.set()

    def finish(self) -> None:
        """Stop moving audio: the call has ended."""
        with self._lock:
            self.over = True
            self._playback = None
        self.wake()

    def sent_ms(self, index: int) -> float:
        """Return when a sample of the sent track left, in ms since the answer."""
        return self._ms(self.sent.time_of(index))

    def received_ms(self, index: int) -> float:
        """Return when a sample of the received track arrived, in ms since the answer."""
        return self._ms(self.received.time_of(index))

    def received_index(self, ms: float) -> int:
        """Return the sample of the received track that arrived at a time of the call."""
        return self.received.index_at(self.zero + ms / 1000)

    def idle_ms(self) -> float:
        """Return for how long the far end had sent nothing, not even silence, at the last tick."""
        return 1000 * self.received.idle_s(self._looked)

    def _ms(self, moment: float | None) -> float:
        return 0.0 if moment is None else 1000 * (moment - self.zero)

    def recording(self) -> Recording:
        """Return both directions from the answer until now, with equal lengths."""
        with self._lock:
            sent = _placed(self.sent.view(), self.sent_ms(0))
            received = _placed(self.received.timeline(), self.received_ms(0))
        length = max(len(sent), len(received))
        return Recording(_padded(sent, length), _padded(received, length))


@dataclass(frozen=True)
class Recording:
    """The audio that one phone sent and received, 8 kHz int16; index 0 of both is the answer."""

    sent: Pcm
    received: Pcm

    def save(self, path: Path) -> None:
        """Write a stereo WAV: the sent audio left, the received audio right."""
        stereo = np.stack([self.sent, self.received], axis=1).astype("<i2")
        with wave.open(str(path), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(stereo.tobytes())


def _placed(track: Pcm, start_ms: float) -> Pcm:
    start = round(start_ms * SAMPLE_RATE / 1000)
    return track[-start:] if start < 0 else _padded(track, len(track) + start, before=True)


def _padded(track: Pcm, length: int, *, before: bool = False) -> Pcm:
    missing = length - len(track)
    return np.pad(track, (missing, 0) if before else (0, missing))


class MediaPump:
    """One thread that moves the audio of every call, so that a busy event loop cannot
    make it stutter. It only does bookkeeping: baresip's own threads keep the packet clock."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._calls: tuple[CallMedia, ...] = ()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, media: CallMedia) -> None:
        """Start to move a call's audio."""
        self._calls = (*self._calls, media)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="phone-media", daemon=True)
            self._thread.start()

    def remove(self, media: CallMedia) -> None:
        """Stop moving a call's audio."""
        self._calls = tuple(m for m in self._calls if m is not media)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            changed: list[Any] = []
            for media in self._calls:
                try:
                    if media.tick(time.monotonic()):
                        changed.append(media)
                except Exception:
                    # An error in one call must not silence the others.
                    logger.exception("phone media tick failed")
                    self.remove(media)
            if changed:
                # The loop may be closed once the last call has ended.
                with contextlib.suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(_wake, changed)


def _dropped_bytes(stats: AudioStats) -> int:
    return int(stats.rx_dropped_bytes + stats.rx_discarded_bytes)


def _wake(calls: list[CallMedia]) -> None:
    for media in calls:
        media.wake()
