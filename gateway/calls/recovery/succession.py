"""Adopt the calls of a gateway that has died or stopped.

What a gateway follows are calls that nobody has answered yet: a dial until its verdict, a caller
until the agent is there, a session until its first socket. Each gateway sends a heartbeat a second.
One whose heartbeat stands still for ``_SILENT_S`` is taken to be dead, and whoever writes itself
into its calls' records follows them from then on. Nothing is dialled again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from core.errors import Unavailable
from gateway.store.call_status import Call
from gateway.store.gateways.gateways import Gateways

log = logging.getLogger(__name__)

_BEAT_S = 1.0
_SILENT_S = 3.5
_HURDLE_S = 2.0
"""A round that took longer: the others' heartbeats were delayed, too."""


class Succession:
    """``begin`` before the first call; then ``run``; ``leave`` when nothing is followed here."""

    adopt: Callable[[Call], Awaitable[None]] | None = None
    """Follows a call from here on, and does not wait for it. None: nothing can be adopted."""

    def __init__(self, gateways: Gateways, *, clock: Callable[[], float] | None = None) -> None:
        self._gateways = gateways
        self._clock = clock or asyncio.get_running_loop().time
        self._seen: dict[str, tuple[int, float]] = {}

    async def begin(self) -> None:
        """Announce this gateway. Raises Unavailable."""
        await self._gateways.beat()

    async def leave(self) -> None:
        """Leave what is still followed here to the others, at once."""
        try:
            await self._gateways.forget(self._gateways.us)
        except Unavailable:
            log.warning("the others have to notice that this gateway stops")

    async def run(self) -> None:
        """Send heartbeats and look for those of the others, until cancelled."""
        while True:
            began = self._clock()
            try:
                await self.round()
            except Unavailable:
                self._seen.clear()  # nobody could send a heartbeat
            except Exception:
                log.exception("looking for gateways failed")
            if self._clock() - began > _HURDLE_S:
                self._seen.clear()
            await asyncio.sleep(_BEAT_S)

    async def round(self) -> None:
        """Send one heartbeat, and adopt the calls of gateways that are not alive."""
        await self._gateways.beat()
        moment = self._clock()
        beats = await self._gateways.beats()
        self._seen = {
            gateway: known
            if (known := self._seen.get(gateway)) is not None and known[0] == beat
            else (beat, moment)
            for gateway, beat in beats.items()
        }
        dead = {
            gateway
            for gateway, (_, since) in self._seen.items()
            if gateway != self._gateways.us and moment - since >= _SILENT_S
        }
        if self.adopt is None:
            return
        alive = (beats.keys() - dead) | {self._gateways.us}
        for call, former in await self._gateways.left_behind(alive):
            if await self._gateways.adopt(call.id, former):
                log.warning("adopted a call", extra={"call_id": call.id, "gateway": former})
                await self.adopt(call)
        for gateway in dead:
            log.warning("a gateway is gone", extra={"gateway": gateway})
            await self._gateways.forget(gateway)
