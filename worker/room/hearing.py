"""The audio of one participant of a room."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np
from livekit import rtc

from core.audio import Pcm


async def hear(room: rtc.Room, identity: str, rate: int, piece_ms: int = 20) -> AsyncGenerator[Pcm]:
    """Yield it at ``rate`` Hz until the participant leaves, at most ``piece_ms`` at a time."""
    participant = room.remote_participants.get(identity)
    if participant is None:
        return
    stream = rtc.AudioStream.from_participant(
        participant=participant,
        track_source=rtc.TrackSource.SOURCE_MICROPHONE,
        sample_rate=rate,
        num_channels=1,
        frame_size_ms=piece_ms,
    )
    try:
        async for event in stream:
            yield np.frombuffer(event.frame.data, np.int16)
    finally:
        await stream.aclose()
