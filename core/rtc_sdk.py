"""Functions for which LiveKit's SDK (1.1.21) has no public call: preloading, DTMF to some."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from livekit import rtc

from core import _private

_SENT_WITHIN_S = 5.0


async def load() -> None:
    """Load the SDK's native library now: whoever uses it first holds up the event loop.

    Where that is a call's own process, its caller hears the first word 20 ms later (measured).

    The native library writes its log itself, by ``RUST_LOG``: its errors alone, unless set. The
    SDK (1.1.21) has each line of it handed to Python, debug lines included, and drops them there:
    3,700 a call, each a call into Python from another thread, for which the event loop has to let
    go of the interpreter. A fifth of the bridge's CPU (measured). There is no option; the library
    takes a second initialization as a change of this setting.
    """
    await rtc.AudioSource(8000, 1).aclose()
    _private.leave_logs_behind()


async def publish_dtmf(room: rtc.Room, whom: Sequence[str], *, code: int, digit: str) -> None:
    """Send a DTMF digit to these participants only; the SDK's own call sends it to the whole room.

    Raises rtc.participant.PublishDTMFError, TimeoutError.
    """
    async with asyncio.timeout(_SENT_WITHIN_S):
        # To the SDK, no destination is the whole room.
        error = await _private.send_dtmf(room, whom, code=code, digit=digit) if whom else ""
    if error:
        raise rtc.participant.PublishDTMFError(error)
