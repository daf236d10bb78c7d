"""What the LiveKit SDK needs of a process that holds many rooms at a time.

``connect`` joins a room and is never cut off half-way. The rest makes room for ten
calls in one process: nobody wakes up for other calls' audio frames, and nobody waits
for the word that a frame was taken.

The SDK (livekit 1.1.21) hands each native event to every subscriber of its kind: a frame of
one audio stream to all audio streams, the confirmation of a captured frame to all rooms.
With ten calls that is some 15,000 wake-ups a second, and all but a tenth are for nothing.
It has no public way to ask for less, so the subscriptions are narrowed here; should an SDK
be built otherwise, calls cost more and work all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from livekit import rtc

log = logging.getLogger(__name__)

Filter = Callable[[Any], bool]

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
    own = getattr(getattr(stream, "_ffi_handle", None), "handle", None)
    if own is None:
        return False
    return _narrow(stream, lambda event: event.audio_stream_event.stream_handle == own)


async def capture(source: rtc.AudioSource, frame: rtc.AudioFrame) -> None:
    """Hand a 10 ms frame to a source without a queue (``queue_size_ms=0``).

    ``capture_frame`` waits for the SDK's confirmation, which tells nothing here: such a source
    hands the frame on at once. On a busy machine the wait was 20 to 40 ms for each frame
    (measured with ten calls on two cores), so that a call fell behind its own phone.
    The SDK copies the samples while it takes the request.
    """
    try:
        from livekit.rtc._ffi_client import FfiClient
        from livekit.rtc._proto.ffi_pb2 import FfiRequest

        handle: Any = source._ffi_handle
        if handle.disposed:
            return
        request = FfiRequest()
        request.capture_audio_frame.source_handle = handle.handle
        request.capture_audio_frame.buffer.CopyFrom(frame._proto_info())
        send: Callable[[Any], Any] = FfiClient.instance.request
    except (ImportError, AttributeError, TypeError, ValueError):
        await source.capture_frame(frame)
        return
    send(request)


def _narrow(subscriber: rtc.Room | rtc.AudioStream, also: Filter) -> bool:
    try:
        from livekit.rtc._ffi_client import FfiClient

        events: Any = FfiClient.instance.queue
        own: Any = subscriber._ffi_queue
        with events._lock:
            for index, (queue, loop, wanted) in enumerate(events._subscribers):
                if queue is own:
                    events._subscribers[index] = (queue, loop, _both(wanted, also))
                    return True
    except (ImportError, AttributeError, TypeError, ValueError):
        log.info("this LiveKit SDK does not let subscriptions be narrowed: calls cost more")
    return False


def _both(wanted: Filter | None, also: Filter) -> Filter:
    return also if wanted is None else lambda event: wanted(event) and also(event)
