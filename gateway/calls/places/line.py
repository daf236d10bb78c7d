"""Calls that ring while all places are taken: seated in the order in which they came.

One task per gateway looks on behalf of all calls that wait at it, and seats whoever is next, also
those of other gateways. So the order is the same for all of them, and nothing is asked of the
database while nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Final

from core.errors import Unavailable
from gateway.store.places.fleet import Kind, NotFree
from gateway.store.places.places import Places, Standing

log = logging.getLogger(__name__)

LONGEST_WAIT: Final = timedelta(seconds=60)
"""The largest RING_WHILE_FULL_S."""
_LOOK_EVERY_S = 0.25


class Line:
    """``wait`` for the places of calls that were stored as waiting."""

    def __init__(self, places: Places, agent_name: str, patience_s: float) -> None:
        """``patience_s``: RING_WHILE_FULL_S."""
        self._places = places
        self._agent_name = agent_name
        self._patience_s = patience_s
        self._waiting: dict[str, asyncio.Future[Standing]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def wait(self, call_id: str) -> Standing:
        """Return ``held`` once the call has a place, ``over`` if it ended meanwhile.

        ``wanted``: it waited for the whole time, in vain.
        """
        future: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = future
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="line")
        try:
            async with asyncio.timeout(self._patience_s):
                return await future
        except TimeoutError:
            return "wanted"
        finally:
            del self._waiting[call_id]

    async def why(self, kind: Kind) -> NotFree:
        """Return why no place is free. Raises Unavailable."""
        fleet = await self._places.fleet(self._agent_name, kind)
        return fleet.why or "workers_full"

    async def _look(self) -> None:
        while self._waiting:
            try:
                standings = await self._places.advance(
                    self._agent_name, self._patience_s, list(self._waiting)
                )
            except Unavailable:
                log.warning("cannot look for free places")
            except Exception:
                log.exception("looking for free places failed")
            else:
                for call_id, standing in standings.items():
                    future = self._waiting.get(call_id)
                    if future is not None and standing != "wanted" and not future.done():
                        future.set_result(standing)
            await asyncio.sleep(_LOOK_EVERY_S)
