"""Makes room for ten calls in one process: a room does not wake up for every audio frame.

The SDK (livekit 1.1.21) hands each native event to each subscriber, and every Room
subscribes to all of them, other rooms' audio frames included. With ten calls that is
some 15,000 wake-ups a second for nothing. A Room ignores media events, so it can be
spared them; the SDK has no public way to say so.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from livekit import rtc

log = logging.getLogger(__name__)

_MEDIA_EVENTS: Final = frozenset({"audio_stream_event", "capture_audio_frame"})


def ignore_media_events(room: rtc.Room) -> bool:
    """Stop waking ``room`` (connected) for audio frames; False when this SDK is built otherwise."""
    try:
        from livekit.rtc._ffi_client import FfiClient

        events: Any = FfiClient.instance.queue
        room_queue: Any = room._ffi_queue
        with events._lock:
            for index, (queue, loop, _) in enumerate(events._subscribers):
                if queue is room_queue:
                    events._subscribers[index] = (queue, loop, _is_no_media_event)
                    return True
    except (ImportError, AttributeError, TypeError, ValueError):
        log.info("this LiveKit SDK does not let rooms ignore media events: calls cost more")
    return False


def _is_no_media_event(event: Any) -> bool:
    return event.WhichOneof("message") not in _MEDIA_EVENTS
