"""A worker's heartbeat, which tells the gateway its capacity and load."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

import aiohttp

from core.jobs import Heartbeat
from core.tokens import TokenIssuer
from worker.link.client import Gateway, GatewayError

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_STUCK_S = 10.0


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


class PresenceThread:
    """Sends a worker's heartbeats from a thread of its own.

    If they stay away for a few seconds, all calls of the worker get other agents. A main process
    whose event loop is blocked for a while must not cause that: its jobs are processes of their
    own. When it has been blocked for ten seconds it is not only busy, and its heartbeats stop.
    """

    def __init__(
        self, heartbeat: Callable[[], Heartbeat | None], gateway_url: str, tokens: TokenIssuer
    ) -> None:
        """``heartbeat`` is called in the thread."""
        self._heartbeat = heartbeat
        self._gateway_url = gateway_url
        self._tokens = tokens
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="presence", daemon=True
        )
        self._ready = threading.Event()
        self._presence: Presence | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: Callable[[], object] = _nothing
        self._seen_at = time.monotonic()

    async def run(self) -> None:
        """Run the thread until cancelled."""
        self._thread.start()
        try:
            while True:
                self._seen_at = time.monotonic()
                await asyncio.sleep(_EVERY_S)
        finally:
            self._ready.wait()
            self._tell(self._stopping)
            await asyncio.to_thread(self._thread.join)

    def begin(self) -> None:
        """See Presence.begin."""
        self._ready.wait()
        if self._presence is not None:
            self._tell(self._presence.begin)

    def hurry(self) -> None:
        """See Presence.hurry."""
        self._ready.wait()
        if self._presence is not None:
            self._tell(self._presence.hurry)

    def _tell(self, what: Callable[[], object]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(what)

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        async with aiohttp.ClientSession() as http:
            gateway = Gateway(http, self._gateway_url)
            self._presence = Presence(self._beat_of_the_living, gateway, self._tokens)
            self._loop, self._stopping = asyncio.get_running_loop(), task.cancel
            self._ready.set()
            with contextlib.suppress(asyncio.CancelledError):
                await self._presence.run()

    def _beat_of_the_living(self) -> Heartbeat | None:
        if time.monotonic() - self._seen_at > _STUCK_S:
            return None
        return self._heartbeat()


def _nothing() -> None:
    """Do nothing: the thread has not begun."""
