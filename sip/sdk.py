"""The LiveKit SDK in a process with many rooms.

``connect`` joins a room and is never interrupted half-way. The rest makes ten calls in one
process possible: no call is woken for other calls' audio frames, or waits for the confirmation
of a captured frame.

The SDK (livekit 1.1.21) passes each native event to every subscriber of its kind: a frame of
one audio stream to all audio streams, the confirmation of a captured frame to all rooms.
With ten calls that is some 15,000 wake-ups a second, of which nine tenths are useless.
The SDK has no public filter, so the subscriptions are narrowed here (sip._private).
"""

from __future__ import annotations

import asyncio
import logging

from livekit import rtc

from sip import _private

log = logging.getLogger(__name__)

_leaving: set[asyncio.Task[None]] = set()


async def connect(
    room: rtc.Room, url: str, token: str, options: rtc.RoomOptions, *, timeout_s: float
) -> None:
    """``room.connect`` with a deadline. Raises ConnectError, TimeoutError.

    Cancelling this is safe. Cancelling ``room.connect`` itself is not: if a connection is made
    and its coroutine is gone, the SDK ends the whole process ("timed out waiting for
    ReadyForRoomEventRequest", SIGTERM). So it continues in the background, and the room is left
    as soon as it has been joined.
    """
    connecting = asyncio.create_task(room.connect(url, token, options))
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(connecting)
    except (TimeoutError, asyncio.CancelledError):
        leaving = asyncio.create_task(_leave(room, connecting))
        _leaving.add(leaving)
        leaving.add_done_callback(_leaving.discard)
        raise


async def _leave(room: rtc.Room, connecting: asyncio.Task[None]) -> None:
    try:
        await connecting
    except rtc.ConnectError:
        return
    await room.disconnect()


def ignore_captured_frames(room: rtc.Room) -> bool:
    """Stop waking ``room`` (connected) for captured frames; False if not possible."""
    return _narrow(room, lambda event: event.WhichOneof("message") != "capture_audio_frame")


def only_own_frames(stream: rtc.AudioStream) -> bool:
    """Wake ``stream`` for its own frames only; False if not possible."""
    own = _private.stream_handle(stream)
    if own is None:
        return False
    return _narrow(stream, lambda event: event.audio_stream_event.stream_handle == own)


def _narrow(subscriber: rtc.Room | rtc.AudioStream, also: _private.Filter) -> bool:
    narrowed = _private.narrow(subscriber, also)
    if not narrowed:
        log.info("this LiveKit SDK does not let subscriptions be narrowed: calls cost more")
    return narrowed


async def capture(source: rtc.AudioSource, frame: rtc.AudioFrame) -> None:
    """Pass a 10 ms frame to a source without a queue (``queue_size_ms=0``).

    ``capture_frame`` waits for the SDK's confirmation, which is useless here: such a source
    passes the frame on at once. On a busy machine the wait was 20 to 40 ms per frame (measured
    with ten calls on two cores), so the audio fell behind the phone.
    """
    if not _private.capture(source, frame):
        await source.capture_frame(frame)
