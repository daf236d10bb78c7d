"""Who listened to a recording, on its call's timeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from core.models import CallEvent
from gateway.calls.timeline import Timeline

Via = Literal["api", "link"]
What = Literal["audio", "peaks", "waveform"]

_AGAIN_S = 60.0


class Listeners:
    """Writes ``recording.accessed``, once a minute for the same listener: players ask for ranges.

    Each gateway counts its own minutes.
    """

    def __init__(self, timeline: Timeline, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeline = timeline
        self._clock = clock
        self._told: dict[tuple[str, str, Via, What], float] = {}

    async def note(self, call_id: str, by: str, via: Via, what: What) -> None:
        """Raises Unavailable: nobody listens unseen."""
        listener, moment = (call_id, by, via, what), self._clock()
        self._told = {who: at for who, at in self._told.items() if moment - at < _AGAIN_S}
        if listener in self._told:
            return
        self._told[listener] = moment
        data = {"by": by, "via": via, "what": what}
        event = CallEvent(type="recording.accessed", data=data)
        try:
            await self._timeline.append(call_id, [event], "gateway")
        except BaseException:
            self._told.pop(listener, None)
            raise
