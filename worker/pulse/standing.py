"""Whether an agent is still its call's, or another one has taken over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus

import aiohttp
from aiohttp.connector import Connection

from core.url_guard import OpenSession, guarded_session
from worker.endings import ENDINGS, REPLACED, Cause, Ending
from worker.link.backoff import Backoff
from worker.link.client import Gateway, Refused, Unavailable
from worker.link.reporter import Reporter
from worker.pulse.report import report_itself
from worker.pulse.standstill import Standstill

log = logging.getLogger(__name__)

_KNOWN_WITHIN_S = 3.0


class Standing:
    """A process that stood still learns from the gateway what it missed.

    Until it knows, it must not hang up: its timers, which are all due at once, would end a call
    that another agent serves. Nor may it send a request to a tenant's server.
    """

    def __init__(
        self,
        gateway: Gateway,
        reporter: Reporter,
        standstill: Standstill,
        on_replaced: Callable[[], None],
    ) -> None:
        self._gateway = gateway
        self._reporter = reporter
        self._standstill = standstill
        self._on_replaced = on_replaced
        self._asking: asyncio.Task[None] | None = None
        self._replaced = False
        self._over = False

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Ask the gateway after each standstill."""
        with self._standstill.tells(self._woke):
            try:
                yield
            finally:
                self._over = True
                if self._asking is not None:
                    self._asking.cancel()
                    await asyncio.wait({self._asking})

    def replaced(self) -> None:
        """Another agent has taken over, as the agent has learnt in another way."""
        self._replaced = True

    def opener(self, *, allow_private: bool) -> OpenSession:
        """Return what opens sessions for the servers of the agent's owner.

        Each of their requests waits, when it has its connection and at most until its deadline,
        until it is known that the agent is its call's. If it is not, or the agent's part ends
        meanwhile, the request fails with ClientConnectionError before it is sent.
        """

        async def check() -> None:
            await self._known()
            if self._replaced or self._over:
                raise aiohttp.ClientConnectionError("the call is over, or another's")

        class Request(aiohttp.ClientRequest):
            async def send(self, conn: Connection) -> aiohttp.ClientResponse:
                await check()
                return await super().send(conn)

        return partial(guarded_session, allow_private=allow_private, request_class=Request)

    async def ending(self, cause: Cause, detail: str) -> Ending:
        """Return what the cause means, after giving the call to another agent if that suffices.

        What the gateway does not say within three seconds counts as unknown: the agent is its
        call's.
        """
        ending, owner = ENDINGS[cause], self._reporter.owner
        await self._known(_KNOWN_WITHIN_S)
        if ending.lost is not None and owner is not None and not self._replaced:
            self._replaced = await report_itself(
                self._gateway, owner.call_id, owner.token, ending.lost, detail
            )
        return REPLACED if self._replaced else ending

    async def _known(self, within_s: float | None = None) -> None:
        """Wait for the gateway's answer; another standstill begins the time anew."""
        self._standstill.look()
        while (asking := self._asking) is not None and not asking.done():
            await asyncio.wait({asking}, timeout=within_s)
            self._standstill.look()
            if self._asking is asking:
                return

    def _woke(self, stood_still_s: float) -> None:
        if self._reporter.owner is None:
            return  # the call is not known yet, nor has anybody heard this agent
        if self._asking is not None:
            self._asking.cancel()  # its answer may be older than this standstill
        log.info("asking whether another agent has the call", extra={"stood_s": stood_still_s})
        self._asking = asyncio.create_task(self._ask(), name="standing")

    async def _ask(self) -> None:
        owner, backoff = self._reporter.owner, Backoff()
        assert owner is not None
        while True:
            try:
                await self._gateway.brief(owner.call_id, owner.token)
                return log.info("still this call's agent")
            except Unavailable:
                await backoff.wait()
            except Refused as error:
                if error.status == HTTPStatus.GONE:
                    self._replaced = True
                    self._on_replaced()
                return
