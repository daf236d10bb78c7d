"""One phone leg: 8 kHz mono PCM between a call's RTP and a LiveKit room.

The uplink has no queue: the phone's audio is captured in the 10 ms frames that LiveKit takes
without one (``queue_size_ms=0``), and the listeners' jitter buffers smooth it. On the downlink
the stack's transmit buffer is the only queue. Its level is measured at every write, and a level
that stays above the target is reduced frame by frame, so that a backlog does not delay the rest
of the call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from livekit import rtc

from core.audio import Pcm
from sip.audio.lost import LostAudio
from sip.audio.sound_reports import SoundReporter
from sip.sdk import capture, only_own_frames

log = logging.getLogger(__name__)

SAMPLE_RATE: Final = 8000
# The frame that LiveKit's direct capture takes, and its length in bytes.
UPLINK_FRAME_MS: Final = 10
UPLINK_FRAME_BYTES: Final = SAMPLE_RATE * UPLINK_FRAME_MS // 1000 * 2
# G.711's usual packet (RFC 3551 §4.2), hence the stack's transmit tick.
DOWNLINK_FRAME_MS: Final = 20
DOWNLINK_FRAME_BYTES: Final = SAMPLE_RATE * DOWNLINK_FRAME_MS // 1000 * 2
# Frames of a track that wait for the leader's, at most.
_AHEAD: Final = 2
# Frames over which the backlog is averaged: a second.
_AVERAGED: Final = 50
# How often the phone's received audio is fetched.
POLL_S: Final = 0.01
# After this long without a packet (a silent, held or broken phone) silence is sent on.
GAP_S: Final = 0.1


class PhoneAudio(Protocol):
    """A call's PCM streams: s16le mono at 8000 Hz. Neither method blocks."""

    def read(self, max_bytes: int) -> bytes:
        """Return up to ``max_bytes`` received since the last read; empty if there are none."""

    def write(self, pcm: bytes) -> None:
        """Queue ``pcm`` for transmission."""

    def backlog(self) -> int:
        """Return the number of bytes written and not yet transmitted."""

    def to_wire_s(self) -> float:
        """Return how long audio that is no backlog any more takes to the wire, in seconds."""


class BacklogGauge:
    """Finds a queue's standing backlog: the lowest level in a window of observations.

    Jitter moves the level up and down; only the part that never drains delays the audio.
    """

    def __init__(self, *, target: int, window: int) -> None:
        self._target = target
        self._window = window
        self._lowest: int | None = None
        self._seen = 0

    def excess(self, level: int) -> int:
        """Note ``level``; once per window, return the lowest one's excess over the target."""
        self._lowest = level if self._lowest is None else min(self._lowest, level)
        self._seen += 1
        if self._seen < self._window:
            return 0
        lowest, self._lowest, self._seen = self._lowest, None, 0
        return max(0, lowest - self._target)


class Mixer:
    """Sums the room's audio tracks, driven by the frames of the oldest one, the leader.

    One clock plays out all tracks of a room, so the others' frames are there when the leader's
    arrives; each track has a queue of at most two frames. If the leader's frames stop (LiveKit
    unsubscribed us, and tells nobody), the first track whose queue is full becomes the leader.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Pcm]] = {}

    def add(self, track: str) -> None:
        self._waiting.setdefault(track, deque(maxlen=_AHEAD))

    def remove(self, track: str) -> None:
        self._waiting.pop(track, None)

    def push(self, track: str, frame: Pcm) -> Pcm | None:
        """Return the mixed frame if ``track`` leads; else None, and it waits for the leader."""
        if track not in self._waiting:
            return None
        if track != next(iter(self._waiting)):
            queue = self._waiting[track]
            if len(queue) < _AHEAD:
                queue.append(frame)
                return None
            queue.clear()  # late by now
            self._waiting = {track: queue, **self._waiting}
        others = [queue.popleft() for queue in self._waiting.values() if queue]
        if not others:
            return frame
        total = frame.astype(np.int32)
        for other in others:
            total[: other.size] += other[: total.size]
        return np.clip(total, -32768, 32767).astype(np.int16)


class PhoneLeg:
    """Moves audio both ways while ``run`` is awaited.

    ``heard_at``: monotonic time of the last audio from the phone. ``backlog_ms``: the wait of
    audio in the transmit buffer, averaged over the last second.
    """

    def __init__(self, audio: PhoneAudio, source: rtc.AudioSource) -> None:
        self._audio = audio
        self._source = source
        self._mixer = Mixer()
        self._gauge = BacklogGauge(target=DOWNLINK_FRAME_BYTES // 2, window=50)
        self._skip = 0
        self._players: dict[str, asyncio.Task[None]] = {}
        self._playing: set[asyncio.Task[None]] = set()  # and those that are being stopped
        self._closed = False
        self._sound: SoundReporter | None = None
        self.heard_at = time.monotonic()
        self.heard_any = False
        self.backlog_ms = 0.0

    async def run(self) -> None:
        """Move audio until cancelled; then stop playing the room's tracks."""
        try:
            # Drop the audio that the phone sent before anyone listened: it would delay the rest.
            while self._audio.read(1 << 16):
                pass
            # One tick in reserve, so that a late frame does not leave a gap in the next packet.
            self._audio.write(bytes(DOWNLINK_FRAME_BYTES))
            await self._uplink()
        finally:
            self._closed = True
            players = list(self._playing)
            for player in players:
                player.cancel()
            await asyncio.gather(*players, return_exceptions=True)

    def report_sound(self, trip_ms: Callable[[], float]) -> SoundReporter:
        """Return the reporter of what the phone says and hears from now on."""
        if self._sound is None:
            self._sound = SoundReporter(SAMPLE_RATE, self._audio, trip_ms)
        return self._sound

    def play(self, track: rtc.RemoteAudioTrack) -> None:
        """Play ``track`` to the phone from now on."""
        if track.sid in self._players or self._closed:
            return
        self._mixer.add(track.sid)
        player = asyncio.create_task(self._downlink(track), name=f"leg-play-{track.sid}")
        self._players[track.sid] = player
        self._playing.add(player)
        player.add_done_callback(self._forget(track.sid))

    def stop(self, track_sid: str) -> None:
        """Forget the track at once: it may come back before its player has ended."""
        player = self._players.pop(track_sid, None)
        if player is not None:
            self._mixer.remove(track_sid)
            player.cancel()

    def _forget(self, track_sid: str) -> Callable[[asyncio.Task[None]], None]:
        def done(player: asyncio.Task[None]) -> None:
            self._playing.discard(player)
            if self._players.get(track_sid) is player:
                self.stop(track_sid)
            if not player.cancelled() and player.exception() is not None:
                log.error("a track cannot be played to the phone", exc_info=player.exception())

        return done

    async def _uplink(self) -> None:
        pending = bytearray()
        last = time.monotonic()
        silence = bytes(UPLINK_FRAME_BYTES)
        lost = LostAudio(SAMPLE_RATE, DOWNLINK_FRAME_BYTES // 2)
        while True:
            received = self._audio.read(1 << 14)
            now = time.monotonic()
            if self._sound is not None:
                self._sound.look(received, time.time())
            if received:
                # Otherwise the listeners' jitter buffers would stretch what comes next.
                pending += bytes(2 * lost.missing(len(received) // 2, now))
                pending += received
                last = self.heard_at = now
                self.heard_any = True
            elif now - last > GAP_S:
                # Fill the gap with silence, at the rate of real time.
                pending += silence
                lost.filled(UPLINK_FRAME_BYTES // 2)
                last += UPLINK_FRAME_MS / 1000
            while len(pending) >= UPLINK_FRAME_BYTES:
                frame = bytes(pending[:UPLINK_FRAME_BYTES])
                del pending[:UPLINK_FRAME_BYTES]
                await capture(
                    self._source, rtc.AudioFrame(frame, SAMPLE_RATE, 1, UPLINK_FRAME_BYTES // 2)
                )
            await asyncio.sleep(POLL_S)

    async def _downlink(self, track: rtc.RemoteAudioTrack) -> None:
        stream = rtc.AudioStream.from_track(
            track=track,
            sample_rate=SAMPLE_RATE,
            num_channels=1,
            frame_size_ms=DOWNLINK_FRAME_MS,
            capacity=5,
        )
        only_own_frames(stream)
        try:
            async for event in stream:
                mixed = self._mixer.push(track.sid, np.frombuffer(event.frame.data, np.int16))
                if mixed is not None:
                    self._to_phone(mixed.tobytes())
        finally:
            await stream.aclose()

    def _to_phone(self, pcm: bytes) -> None:
        # Skips whole frames, rounded up. A skip is audible, so skips are rare and short.
        backlog = self._audio.backlog()
        backlog_ms = backlog / DOWNLINK_FRAME_BYTES * DOWNLINK_FRAME_MS
        self.backlog_ms += (backlog_ms - self.backlog_ms) / _AVERAGED
        excess = self._gauge.excess(backlog)
        self._skip += -(-excess // DOWNLINK_FRAME_BYTES)
        if self._skip:
            self._skip -= 1
            return
        self._audio.write(pcm)
        if self._sound is not None:
            self._sound.written(pcm)
