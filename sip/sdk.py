"""Makes room for ten calls in one process: a room does not wake up for every captured frame.

The SDK (livekit 1.1.21) confirms each captured frame with an event, and hands it to every
Room of the process. With ten calls of 10 ms frames that is 10,000 wake-ups a second, which
all rooms ignore. It spares them the frames of audio streams itself; for these
confirmations it has no public way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from livekit import rtc

log = logging.getLogger(__name__)


def ignore_captured_frames(room: rtc.Room) -> bool:
    """Stop waking ``room`` (connected) for frames; False when this SDK is built otherwise."""
    try:
        from livekit.rtc._ffi_client import FfiClient

        events: Any = FfiClient.instance.queue
        with events._lock:
            for index, (queue, loop, wanted) in enumerate(events._subscribers):
                if queue is room._ffi_queue:
                    events._subscribers[index] = (queue, loop, _without_captures(wanted))
                    return True
    except (ImportError, AttributeError, TypeError, ValueError):
        log.info("this LiveKit SDK does not let rooms ignore captured frames: calls cost more")
    return False


def _without_captures(wanted: Callable[[Any], bool] | None) -> Callable[[Any], bool]:
    def is_wanted(event: Any) -> bool:
        if event.WhichOneof("message") == "capture_audio_frame":
            return False
        return wanted is None or wanted(event)

    return is_wanted
