"""An agent's track besides its voice: hold music, or a briefing for one participant."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from livekit import rtc

log = logging.getLogger(__name__)

_QUEUE_MS = 200
_PUBLISHED_WITHIN_S = 5.0
_SUBSCRIBED_WITHIN_S = 5.0
_UNPUBLISH_WITHIN_S = 2.0


class SideTrack:
    """A mono track of ``rate`` Hz. ``open`` publishes it, ``aclose`` unpublishes it."""

    def __init__(self, room: rtc.Room, name: str, rate: int) -> None:
        self._room = room
        self._name = name
        self._source = rtc.AudioSource(rate, 1, queue_size_ms=_QUEUE_MS)
        self._publication: rtc.LocalTrackPublication | None = None

    @property
    def sid(self) -> str:
        assert self._publication is not None, "not published"
        return self._publication.sid

    async def open(self) -> None:
        """Publish the track. Raises TimeoutError, PublishTrackError."""
        track = rtc.LocalAudioTrack.create_audio_track(self._name, self._source)
        # SOURCE_MICROPHONE would be the agent's voice.
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_UNKNOWN)
        async with asyncio.timeout(_PUBLISHED_WITHIN_S):
            self._publication = await self._room.local_participant.publish_track(track, options)

    async def heard(self) -> None:
        """Wait until a participant has subscribed. Raises TimeoutError."""
        assert self._publication is not None, "not published"
        async with asyncio.timeout(_SUBSCRIBED_WITHIN_S):
            await self._publication.wait_for_subscription()

    async def play(self, frames: AsyncIterator[rtc.AudioFrame]) -> None:
        """Play all frames in real time."""
        async for frame in frames:
            await self._source.capture_frame(frame)
        await self._source.wait_for_playout()

    async def aclose(self) -> None:
        """Unpublish the track and drop unplayed audio. Idempotent."""
        publication, self._publication = self._publication, None
        if publication is None:
            return
        self._source.clear_queue()
        try:
            async with asyncio.timeout(_UNPUBLISH_WITHIN_S):
                await self._room.local_participant.unpublish_track(publication.sid)
        except Exception as error:  # the SDK raises bare Exception, and the room may be left
            log.info("track not taken back", extra={"problem": type(error).__name__})
        await self._source.aclose()
