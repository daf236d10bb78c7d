"""Wait in a request for a call's events, or for its end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from aiohttp import web

from core.models import now
from gateway.calls.timeline import Listener, Look
from gateway.http.connection import Connection
from gateway.http.pace import PACE
from gateway.http.principal import PRINCIPAL
from gateway.keys import STOPPING, STORE, TIMELINE
from gateway.store.call_status import Call
from gateway.store.database import Scope


class Last:
    """Decides when no more events of an ended call are expected."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._deadline = math.inf

    def told(self, seen: Look) -> bool:
        """Return True once the call has ended and its agent has left, or ``settle_s`` is over."""
        if seen.call is None:
            return True
        if seen.call.ended_at is None:
            return False
        moment = asyncio.get_running_loop().time()
        self._deadline = min(self._deadline, moment + self._settle_s)
        late = now() - seen.call.ended_at > timedelta(seconds=self._settle_s)
        return late or moment >= self._deadline or seen.agent_gone

    @property
    def deadline(self) -> float:
        """When to look again even without news (the loop's clock)."""
        return self._deadline


async def until_over(request: web.Request, call: Call, timeout_s: float) -> Call:
    """Wait until the call has ended and its events are complete, or for ``timeout_s``; return it.

    Stops early if the client disconnects, the token expires, or the gateway begins to stop.
    Raises Unavailable (the database).
    """
    clock = asyncio.get_running_loop()
    deadline = clock.time() + min(timeout_s, valid_for_s(request))
    last = Last(request.app[PACE].settle_s)
    async with attentive(request, call.id) as news:
        while not over(request):
            # Access to the call has been checked. The events themselves are not needed here.
            seen = await news.look(after=_NO_EVENTS)
            call = seen.call or call
            if last.told(seen) or not await _until(news, deadline, last.deadline):
                break
        else:
            call = await request.app[STORE].call(Scope(None), call.id) or call
    return call


# Greater than any event's number.
_NO_EVENTS = 2**62


async def _until(news: Listener, deadline: float, look_again: float) -> bool:
    """Wait for news or until ``look_again``; False at the deadline."""
    moment = asyncio.get_running_loop().time()
    if moment >= deadline:
        return False
    return await news.wait(min(deadline, look_again) - moment) or look_again < deadline


@asynccontextmanager
async def attentive(request: web.Request, call_id: str) -> AsyncIterator[Listener]:
    """A listener that also wakes when the client disconnects or the gateway begins to stop."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    async with request.app[TIMELINE].listen(call_id) as news:
        with connection.when_lost(news.ring):
            yield news


def over(request: web.Request) -> bool:
    """Return True if the client has disconnected or the gateway begins to stop."""
    transport = request.transport
    return request.app[STOPPING].is_set() or transport is None or transport.is_closing()


def valid_for_s(request: web.Request) -> float:
    """Return the remaining lifetime of the request's token, which limits waits and streams."""
    expires_at = request[PRINCIPAL].expires_at
    return math.inf if expires_at is None else expires_at - time.time()
