"""Waiting in a request for news of a call, or for its end."""

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
from gateway.http.principal import PRINCIPAL
from gateway.keys import STOPPING, STORE, TIMELINE
from gateway.store.call_record import Call
from gateway.store.database import Scope

# The agent tells of the last words after the end; one that was killed never does.
SETTLE_S = 2.0


class Last:
    """Says when nothing more is to be expected of a call that is over."""

    def __init__(self) -> None:
        self._deadline = math.inf

    def told(self, seen: Look) -> bool:
        """False while the call goes on, and then until its agent has left, or for SETTLE_S."""
        if seen.call is None:
            return True
        if seen.call.ended_at is None:
            return False
        moment = asyncio.get_running_loop().time()
        self._deadline = min(self._deadline, moment + SETTLE_S)
        late = now() - seen.call.ended_at > timedelta(seconds=SETTLE_S)
        return late or moment >= self._deadline or seen.agent_gone

    @property
    def deadline(self) -> float:
        """When to look again though there were no news (the loop's clock)."""
        return self._deadline


async def until_over(request: web.Request, call: Call, timeout_s: float) -> Call:
    """The call once it is over and all is told of it, or as it stands when the time is up.

    Also when the client has gone, the token is no longer valid, or the gateway is about to stop.
    Raises Unavailable (the database).
    """
    clock = asyncio.get_running_loop()
    deadline = clock.time() + min(timeout_s, valid_for_s(request))
    last = Last()
    async with attentive(request, call.id) as news:
        while not over(request):
            # Whose call it is has been checked; of its events only that there are new ones counts.
            seen = await news.look(after=_NO_EVENTS)
            call = seen.call or call
            if last.told(seen) or not await _until(news, deadline, last.deadline):
                break
        else:
            call = await request.app[STORE].call(Scope(None), call.id) or call
    return call


# Beyond every event's number.
_NO_EVENTS = 2**62


async def _until(news: Listener, deadline: float, look_again: float) -> bool:
    """Until there are news, or it is time to look without; False when the time is up."""
    moment = asyncio.get_running_loop().time()
    if moment >= deadline:
        return False
    return await news.wait(min(deadline, look_again) - moment) or look_again < deadline


@asynccontextmanager
async def attentive(request: web.Request, call_id: str) -> AsyncIterator[Listener]:
    """A listener that is also woken when the client hangs up; and when the gateway stops."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    async with request.app[TIMELINE].listen(call_id) as news:
        with connection.when_lost(news.ring):
            yield news


def over(request: web.Request) -> bool:
    """Whether nobody waits for more: the client has hung up, or the gateway is about to stop."""
    transport = request.transport
    return request.app[STOPPING].is_set() or transport is None or transport.is_closing()


def valid_for_s(request: web.Request) -> float:
    """So long the request's token is valid yet; what it lets in must not outlive it."""
    expires_at = request[PRINCIPAL].expires_at
    return math.inf if expires_at is None else expires_at - time.time()
