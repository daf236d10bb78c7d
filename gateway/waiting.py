"""Waiting in a request for a call to be over."""

from __future__ import annotations

import asyncio

from aiohttp import web

from core.database import Scope
from core.models import Call
from gateway.keys import STOPPING, STORE, TIMELINE
from gateway.live import POLL_S


async def until_over(request: web.Request, call: Call, timeout_s: float) -> Call:
    """The call once it is over; as it stands when the time is up, the client has gone, or the

    gateway is about to stop. Raises Unavailable (the database).
    """
    store, stopping = request.app[STORE], request.app[STOPPING]
    clock = asyncio.get_running_loop()
    deadline = clock.time() + timeout_s
    async with request.app[TIMELINE].listen(call.id) as news:
        while True:
            # The caller has checked whose call it is.
            call = await store.call(Scope(None), call.id) or call
            left = deadline - clock.time()
            if call.ended or left <= 0 or stopping.is_set() or gone(request):
                return call
            await news.wait(min(left, POLL_S))


def gone(request: web.Request) -> bool:
    """Whether the client has hung up, which the transport knows long before a write fails."""
    return request.transport is None or request.transport.is_closing()
