"""Callbacks of one call, delivered one after the other in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

EVENTS = ("initiated", "ringing", "answered", "completed")
Send = Callable[[str, Mapping[str, str], str], Awaitable[None]]


class Outbox:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._queue: asyncio.Queue[tuple[str, Mapping[str, str], str]] = asyncio.Queue()

    def post(self, url: str, form: Mapping[str, str], method: str = "POST") -> None:
        self._queue.put_nowait((url, form, method))

    async def delivered(self) -> None:
        """Wait until all that was posted has been answered, or has failed."""
        await self._queue.join()

    async def run(self) -> None:
        while True:
            message = await self._queue.get()
            try:
                await self._send(*message)
            finally:
                self._queue.task_done()


class Progress:
    """The status callback of a call: numbered events, of which some were asked for."""

    def __init__(
        self,
        outbox: Outbox,
        url: str | None,
        method: str = "POST",
        events: tuple[str, ...] = ("completed",),
    ) -> None:
        self._outbox, self._url, self._method, self._events = outbox, url, method, events
        self._sequence = 0

    def fire(self, event: str, form: Mapping[str, str]) -> None:
        if not self._url or event not in self._events:
            return
        extra = {
            "CallbackSource": "call-progress-events",
            "SequenceNumber": str(self._sequence),
            "Timestamp": format_datetime(datetime.now(UTC)),
        }
        self._sequence += 1
        self._outbox.post(self._url, {**form, **extra}, self._method)
