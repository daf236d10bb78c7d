"""Waiting in a request for a call to be over."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from aiohttp import web

from core.database import Scope
from core.models import Call, now
from core.store import Store
from gateway.keys import STOPPING, STORE, TIMELINE
from gateway.live import POLL_S

# The agent tells of the last words after the end; one that was killed never does.
SETTLE_S = 2.0


class Last:
    """Says when nothing more is to be expected of a call that is over."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._deadline: float | None = None

    async def told(self, call: Call) -> bool:
        """False while the call goes on, and then until its agent has left, or for SETTLE_S."""
        if call.ended_at is None:
            return False
        moment = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = moment + SETTLE_S
        if moment >= self._deadline or now() - call.ended_at > timedelta(seconds=SETTLE_S):
            return True
        events = await self._store.events(call.id, types=("agent.joined", "agent.left"))
        seen = {event.type for event in events}
        return "agent.joined" not in seen or "agent.left" in seen


async def until_over(request: web.Request, call: Call, timeout_s: float) -> Call:
    """The call once it is over and all is told of it, or as it stands when the time is up.

    Also when the client has gone or the gateway is about to stop. Raises Unavailable (the
    database).
    """
    store, stopping = request.app[STORE], request.app[STOPPING]
    clock = asyncio.get_running_loop()
    deadline = clock.time() + timeout_s
    last = Last(store)
    async with request.app[TIMELINE].listen(call.id) as news:
        while True:
            # The caller has checked whose call it is.
            call = await store.call(Scope(None), call.id) or call
            left = deadline - clock.time()
            if left <= 0 or stopping.is_set() or gone(request) or await last.told(call):
                return call
            await news.wait(min(left, POLL_S))


def gone(request: web.Request) -> bool:
    """Whether the client has hung up, which the transport knows long before a write fails."""
    return request.transport is None or request.transport.is_closing()
