"""The worker's heartbeat, which tells the gateway its capacity and load."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from livekit.agents import AgentServer

from core.jobs import Heartbeat
from core.settings import Settings
from core.tokens import TokenIssuer
from worker._private import is_connecting
from worker.link.client import Gateway, GatewayError

log = logging.getLogger(__name__)

_EVERY_S = 2.0


class Presence:
    """Sends a heartbeat at registration, every two seconds, and when draining begins."""

    def __init__(
        self, server: AgentServer, gateway: Gateway, tokens: TokenIssuer, settings: Settings
    ) -> None:
        self._server = server
        self._gateway = gateway
        self._tokens = tokens
        self._agent_name = settings.agent_name
        self._capacity = settings.worker_max_calls
        self._draining = False
        self._registered = asyncio.Event()
        self._now = asyncio.Event()
        self._taken: bool | None = None  # the gateway accepted the last heartbeat
        server.on("worker_registered", self._on_registered)

    def drain(self) -> None:
        """Tell the gateway at once that this worker takes no new calls."""
        self._draining = True
        self._now.set()

    async def run(self) -> None:
        """Send heartbeats until cancelled. An unavailable gateway is logged once and not fatal."""
        await self._registered.wait()
        while True:
            self._now.clear()
            if not is_connecting(self._server):
                await self._beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._now.wait()

    def _on_registered(self, *_: object) -> None:
        self._registered.set()
        self._now.set()

    async def _beat(self) -> None:
        heartbeat = Heartbeat(
            worker_id=self._server.id,
            agent_name=self._agent_name,
            capacity=self._capacity,
            active=len(self._server.active_jobs),
            draining=self._draining,
        )
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
