"""A participant that echoes the caller's audio, and the round trip measured at the phone."""

from __future__ import annotations

import asyncio

import numpy as np
from livekit import rtc

from core.audio import Pcm
from dev.phone.call import PhoneCall
from dev.speech import listen
from dev.stack.sip_backends import Backend
from sip.sdk import capture, ignore_captured_frames, only_own_frames


class Echo:
    """Sends back the audio it receives, without a queue of its own."""

    def __init__(self, backend: Backend, room: str) -> None:
        self._backend = backend
        self._name = room
        self._room = rtc.Room()
        self._source = rtc.AudioSource(48000, 1, queue_size_ms=0)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Echo:
        self._room.on("track_subscribed", self._on_track)
        await self._room.connect(self._backend.url, self._backend.token(self._name, "echo"))
        ignore_captured_frames(self._room)
        track = rtc.LocalAudioTrack.create_audio_track("echo", self._source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self._room.local_participant.publish_track(track, options)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._room.disconnect()
        await self._source.aclose()

    def _on_track(self, track: rtc.Track, *_: object) -> None:
        if isinstance(track, rtc.RemoteAudioTrack):
            self._tasks.append(asyncio.create_task(self._play(track)))

    async def _play(self, track: rtc.RemoteAudioTrack) -> None:
        stream = rtc.AudioStream.from_track(
            track=track, sample_rate=48000, num_channels=1, frame_size_ms=10, capacity=5
        )
        only_own_frames(stream)
        try:
            async for event in stream:
                frame = rtc.AudioFrame(bytes(event.frame.data), 48000, 1, 480)
                await capture(self._source, frame)
        finally:
            await stream.aclose()


def noise(seconds: float, seed: int = 1) -> Pcm:
    """Return noise, which correlates with itself at one offset only."""
    samples = np.random.default_rng(seed).normal(0, 6000, int(seconds * 8000))
    return samples.clip(-30000, 30000).astype(np.int16)


async def measure_rtt(call: PhoneCall, *, seed: int = 1) -> float:
    """Return the round trip of one burst, phone → room → echo → phone, in ms at the phone.

    The burst is 200 ms of noise. It is located in the received track by correlation, so the
    result is exact to the sample and independent of the load of this process.
    """
    burst = noise(0.2, seed)
    span = await call.play(burst)
    await asyncio.sleep(1.0)
    received = call.recording.received
    start = max(0, int(span.start_ms * 8) - 400)
    match = listen.find(burst, received[start:])
    if match.score < 0.3:
        raise AssertionError(f"the burst did not come back (score {match.score:.2f})")
    return (start + match.offset) / 8 - span.start_ms
