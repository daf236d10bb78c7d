"""What the LiveKit SDK needs of a process that holds many rooms at a time.

``connect`` joins a room and is never cut off half-way. The rest makes room for ten
calls in one process: nobody wakes up for other calls' audio frames, and nobody waits
for the word that a frame was taken.

The SDK (livekit 1.1.21) hands each native event to every subscriber of its kind: a frame of
one audio stream to all audio streams, the confirmation of a captured frame to all rooms.
With ten calls that is some 15,000 wake-ups a second, and all but a tenth are for nothing.
It has no public way to ask for less, so the subscriptions are narrowed here (sip._private).
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

    Cancelling is safe. Cutting ``room.connect`` itself off is not: a connection that is
    made, but not taken over by the coroutine that asked for it, makes the SDK end the
    whole process ("timed out waiting for ReadyForRoomEventRequest", SIGTERM). So it goes
    on by itself, and the room is left as soon as it has been entered.
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
    """Stop waking ``room`` (connected) for captured frames; False when that is not possible."""
    return _narrow(room, lambda event: event.WhichOneof("message") != "capture_audio_frame")


def only_own_frames(stream: rtc.AudioStream) -> bool:
    """Wake ``stream`` for its own frames only; False when that is not possible."""
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
    """Hand a 10 ms frame to a source without a queue (``queue_size_ms=0``).

    ``capture_frame`` waits for the SDK's confirmation, which tells nothing here: such a source
    hands the frame on at once. On a busy machine the wait was 20 to 40 ms for each frame
    (measured with ten calls on two cores), so that a call fell behind its own phone.
    """
    if not _private.capture(source, frame):
        await source.capture_frame(frame)
