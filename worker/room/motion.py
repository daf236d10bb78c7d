"""Whether a call's audio moves in its job: if not, the agent hangs though its event loop runs.

LiveKit's SDK delivers a subscribed track at an even pace, whatever its sender does (measured with
SDK 1.1.21): also while the far end is silent, muted, on hold or frozen, and while LiveKit stands
still. When the connection is lost it ends the track's stream. So frames that stay away for seconds
while their track is there mean that the SDK, or its way to the event loop, is stuck.

In the other direction the SDK takes a frame from the agent's voice as soon as there is room in a
queue of 200 ms, which it plays in real time with or without a connection. The agent's voice may
pause (a caller speaks), and need not move then.
"""

from __future__ import annotations

import asyncio

from livekit import rtc
from livekit.agents.voice import io

from worker._private import played

# Five small pieces a second cost next to nothing.
_RATE = 8000
_PIECE_MS = 200


class Motion:
    """Counts the audio of the far end, and watches the agent's ``voice``."""

    def __init__(self, room: rtc.Room, identity: str, voice: io.AudioOutput | None) -> None:
        self._room = room
        self._identity = identity
        self._voice = voice
        self._listening: dict[str, asyncio.Task[None]] = {}
        self._arrived = 0
        self._counted = 0
        self._played: float | None = None
        room.on("track_subscribed", self._subscribed)
        room.on("track_unsubscribed", self._unsubscribed)
        if (far_end := room.remote_participants.get(identity)) is not None:
            for publication in far_end.track_publications.values():
                if publication.track is not None:
                    self._subscribed(publication.track, publication, far_end)

    def still(self) -> str | None:
        """Return ``input`` or ``output`` if it should have moved since the last call, and did not.

        A track counts from its first frame on: a phone may publish one long before it sends.
        """
        arrived, self._arrived = self._arrived, 0
        before, self._played = self._played, None if self._voice is None else played(self._voice)
        if all(task.done() for task in self._listening.values()):
            self._counted = 0
        elif self._counted and not arrived:
            return "input"
        self._counted += arrived
        if before is not None and before == self._played:
            return "output"
        return None

    async def aclose(self) -> None:
        self._room.off("track_subscribed", self._subscribed)
        self._room.off("track_unsubscribed", self._unsubscribed)
        self._voice = None
        listening = [*self._listening.values()]
        self._listening.clear()
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)

    def _subscribed(
        self,
        track: rtc.Track,
        publication: rtc.RemoteTrackPublication,
        participant: rtc.RemoteParticipant,
    ) -> None:
        ours = participant.identity == self._identity and isinstance(track, rtc.RemoteAudioTrack)
        if ours and publication.source == rtc.TrackSource.SOURCE_MICROPHONE:
            self._unsubscribed(track, publication, participant)
            self._counted = 0
            self._listening[publication.sid] = asyncio.create_task(
                self._count(track), name="audio pulse"
            )

    def _unsubscribed(
        self,
        track: rtc.Track,
        publication: rtc.RemoteTrackPublication,
        participant: rtc.RemoteParticipant,
    ) -> None:
        if (task := self._listening.pop(publication.sid, None)) is not None:
            task.cancel()

    async def _count(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(track, sample_rate=_RATE, num_channels=1, frame_size_ms=_PIECE_MS)
        try:
            async for _ in stream:
                self._arrived += 1
        finally:
            await stream.aclose()
