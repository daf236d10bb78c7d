"""A worker's heartbeat, which tells the gateway its capacity and load."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from core.jobs import Heartbeat
from core.tokens import TokenIssuer
from worker.link.client import Gateway, GatewayError

log = logging.getLogger(__name__)

_EVERY_S = 1.0


class Presence:
    """Sends a heartbeat when it begins, every second, and when hurried."""

    def __init__(
        self,
        heartbeat: Callable[[], Heartbeat | None],
        gateway: Gateway,
        tokens: TokenIssuer,
        *,
        on_taken: Callable[[bool], None] | None = None,
    ) -> None:
        """``heartbeat`` returns None while there is nothing to tell. ``on_taken`` is told whether
        the gateway took the last one."""
        self._heartbeat = heartbeat
        self._gateway = gateway
        self._tokens = tokens
        self._on_taken = on_taken
        self._begun = asyncio.Event()
        self._now = asyncio.Event()
        self._taken: bool | None = None  # the gateway accepted the last heartbeat

    def begin(self) -> None:
        """Send the first heartbeat, if none was sent yet, and the next one now."""
        self._begun.set()
        self._now.set()

    def hurry(self) -> None:
        """Send the next heartbeat now: the worker takes no new calls."""
        self._now.set()

    async def run(self) -> None:
        """Send heartbeats until cancelled. An unavailable gateway is logged once and not fatal."""
        await self._begun.wait()
        while True:
            self._now.clear()
            if (heartbeat := self._heartbeat()) is not None:
                await self._beat(heartbeat)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._now.wait()

    async def _beat(self, heartbeat: Heartbeat) -> None:
        try:
            await self._gateway.heartbeat(self._tokens.for_worker(heartbeat.worker_id), heartbeat)
        except GatewayError as error:
            if self._taken is not False:
                log.warning("heartbeat not taken", extra={"error": str(error)})
            self._taken = False
        else:
            if not self._taken:
                log.info("heartbeat taken: the gateway knows this worker")
            self._taken = True
        if self._on_taken is not None:
            self._on_taken(self._taken)
