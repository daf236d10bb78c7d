"""Speaking and listening on a call of a :class:`dev.phone.Phone`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from core.audio import Pcm
from dev.phone.endings import CallEnded, Ended
from dev.phone.media import CallMedia, Recording
from dev.phone.tracks import FRAME, SAMPLE_RATE
from dev.speech import CALLER_VOICE, Voice, listen, synthesize
from dev.speech.listen import SpeechFinder


@dataclass(frozen=True)
class Span:
    """The position of an utterance: the start of its first and the end of its last voiced
    frame, in ms since the answer, on the clock of the call's recording."""

    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Heard:
    """One utterance of the far end, on the same clock, 8 kHz."""

    pcm: Pcm
    start_ms: float
    end_ms: float


class SpokenCall:
    """The audio of an established call. Positions are milliseconds since its answer."""

    def __init__(self) -> None:
        self.ending: Ended | None = None
        self._media: CallMedia | None = None
        self._mouth = asyncio.Lock()
        self._heard_until = 0  # index in the received track

    async def play(self, pcm: Pcm) -> Span:
        """Send 8 kHz audio and wait until all of it has left. Concurrent calls queue.

        Cancelling stops the audio at once. For silent audio the span is that of its frames.

        Raises:
            CallEnded: the call is not established, or ended meanwhile.
        """
        media = self._live_media()
        async with self._mouth:
            start, end = await media.play(pcm.astype("<i2").tobytes())
        if media.over:
            raise CallEnded(str(self.ending))
        voice = listen.speech_bounds(media.sent.view(start, end), SAMPLE_RATE)
        if voice is None:
            return Span(media.sent_ms(start), media.sent_ms(end))
        origin = media.sent_ms(start)
        return Span(origin + voice.start_ms, origin + voice.end_ms)

    async def say(self, text: str, *, voice: Voice = CALLER_VOICE) -> Span:
        """Speak a text; see :meth:`play`."""
        spoken = await asyncio.to_thread(synthesize, text, voice, SAMPLE_RATE)
        return await self.play(spoken.pcm)

    async def listen(
        self,
        timeout: float,
        *,
        end_silence_ms: float = 700,
        threshold_dbfs: float = listen.VOICE_DBFS,
        since_ms: float | None = None,
    ) -> Heard:
        """Wait for the far end to start and stop speaking; return that utterance.

        Speech from before this method was called counts if no earlier ``listen`` returned it.
        If the call ends during the speech, the part until then is returned.

        Args:
            end_silence_ms: The silence that ends an utterance.
            since_ms: Search from this time of the call, instead of from the end of the
                last utterance.

        Raises:
            CallEnded: the call ended before any speech.
            TimeoutError: no speech began in time, or it did not stop in time.
        """
        media = self._live_media()
        if since_ms is not None:
            self._heard_until = media.received_index(since_ms)
        start = self._heard_until
        fed = start
        found: listen.Segment | None = None
        finder = SpeechFinder(
            SAMPLE_RATE, threshold_dbfs=threshold_dbfs, end_silence_ms=end_silence_ms
        )

        def heard() -> bool:
            nonlocal fed, found
            track = media.received
            # Frame by frame, so that the audio after the utterance is left for the next one.
            while found is None and len(track) >= fed + FRAME:
                if finder.speaking and track.hole_ms(fed, fed + FRAME) >= end_silence_ms:
                    found = finder.finish()
                    break
                segments = finder.feed(track.view(fed, fed + FRAME))
                fed += FRAME
                found = segments[0] if segments else None
            if found is None and (media.over or media.idle_ms() >= end_silence_ms):
                found = finder.finish()
            return found is not None or media.over

        async with asyncio.timeout(timeout):
            await media.wait_for(heard)
        if found is None:
            raise CallEnded(f"no speech before the end: {self.ending}")
        first = start + int(found.start_ms * SAMPLE_RATE / 1000)
        last = start + int(found.end_ms * SAMPLE_RATE / 1000)
        self._heard_until = last
        return Heard(
            media.received.view(first, last), media.received_ms(first), media.received_ms(last)
        )

    async def speech_begins(self, timeout: float, *, since_ms: float = 0.0) -> float:
        """Wait for the far end to start speaking; return that time, in ms of the call.

        This does not change what ``listen`` returns next.

        Raises:
            CallEnded: the call ended before any speech.
            TimeoutError: no speech began in time.
        """
        media = self._live_media()
        start = fed = media.received_index(since_ms)
        finder = SpeechFinder(SAMPLE_RATE)

        def begun() -> bool:
            nonlocal fed
            while finder.started_ms is None and len(media.received) >= fed + FRAME:
                finder.feed(media.received.view(fed, fed + FRAME))
                fed += FRAME
            return finder.started_ms is not None or media.over

        async with asyncio.timeout(timeout):
            await media.wait_for(begun)
        if finder.started_ms is None:
            raise CallEnded(f"no speech before the end: {self.ending}")
        return media.received_ms(start) + finder.started_ms

    async def silence(self, duration_ms: float, timeout: float) -> None:
        """Wait until the far end has been silent for ``duration_ms``, counted from now."""
        media = self._live_media()
        frames = int(duration_ms / listen.FRAME_MS)
        fed = len(media.received)
        quiet = 0

        def silent() -> bool:
            nonlocal fed, quiet
            while len(media.received) >= fed + FRAME:
                level = listen.level_dbfs(media.received.view(fed, fed + FRAME))
                quiet = quiet + 1 if level < listen.VOICE_DBFS else 0
                fed += FRAME
            return quiet >= frames or media.idle_ms() >= duration_ms or media.over

        async with asyncio.timeout(timeout):
            await media.wait_for(silent)

    def now_ms(self) -> float:
        """Return the time of the call, on the clock of its recording."""
        return 1000 * (time.monotonic() - self._any_media().zero)

    @property
    def recording(self) -> Recording:
        """Both directions from the answer until now (or the end)."""
        return self._any_media().recording()

    def save(self, path: Path) -> None:
        """Write the recording as a stereo WAV: this phone left, the far end right."""
        self.recording.save(path)

    @property
    def media(self) -> CallMedia:
        """The raw tracks and counters, for measurements."""
        return self._any_media()

    def _any_media(self) -> CallMedia:
        if self._media is None:
            raise CallEnded("the call was never up")
        return self._media

    def _live_media(self) -> CallMedia:
        if self._media is None or self._media.over:
            raise CallEnded(str(self.ending or "the call is not up yet"))
        return self._media
