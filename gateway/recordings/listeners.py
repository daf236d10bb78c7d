"""Who listened to a recording, on its call's timeline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from core.models import CallEvent
from gateway.calls.timeline import Timeline

Via = Literal["api", "link"]
What = Literal["audio", "peaks", "waveform"]
Listener = tuple[str, str, Via, What]
"""The call's id, who listens, and how to what."""

_AGAIN_S = 60.0


class Listeners:
    """Writes ``recording.accessed``, once a minute for the same listener: players ask for ranges.

    Each gateway counts its own minutes.
    """

    def __init__(self, timeline: Timeline, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeline = timeline
        self._clock = clock
        self._told: dict[Listener, tuple[float, asyncio.Task[None]]] = {}

    async def note(self, call_id: str, by: str, via: Via, what: What) -> None:
        """Return when it is written. Raises Unavailable: nobody listens unseen."""
        listener, moment = (call_id, by, via, what), self._clock()
        self._told = {who: told for who, told in self._told.items() if moment - told[0] < _AGAIN_S}
        if listener not in self._told:
            writing = asyncio.create_task(self._write(listener), name="listener")
            self._told[listener] = moment, writing
        # All requests of the minute depend on this one: a client that leaves does not cancel it.
        await asyncio.shield(self._told[listener][1])

    async def _write(self, listener: Listener) -> None:
        call_id, by, via, what = listener
        data = {"by": by, "via": via, "what": what}
        try:
            event = CallEvent(type="recording.accessed", data=data)
            await self._timeline.append(call_id, [event], "gateway")
        except BaseException:
            self._told.pop(listener, None)
            raise
