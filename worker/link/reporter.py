"""Delivers a call's events to the gateway, even across failures of the gateway or the worker.

``Reporter`` exists as long as its call. It writes each event to the spool, then sends
pending events in order. Undelivered events stay in the spool, and ``sweep`` (run by the
worker's main process) delivers them later.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from core.models import CallEvent, new_id, now
from worker.link import spool
from worker.link.backoff import FIRST_S, Backoff
from worker.link.client import Gateway, Refused, Unavailable
from worker.link.keeper import Keeper
from worker.link.spool import Owner, Spool

log = logging.getLogger(__name__)

BATCH = 100  # events in one request
BATCH_BYTES = 512 * 1024
"""Of one request; the gateway takes 1 MiB. A turn of 5,000 words, with times, has a third of it."""
_SWEEP_EVERY_S = 10.0
_PATIENT = 4
"""How much longer to wait for the gateway while events are in memory only."""
_SWEPT_WITHIN_S = 1.0
_LOOK_AGAIN_S = 0.05


class Reporter:
    """Posts one call's events. ``post`` never fails and never waits.

    The call may become known later (``own``); until then events are kept in memory. If the
    spool cannot be written (disk full, read-only), the call goes on, and its events stay in
    memory until the gateway has them.
    """

    on_over: Callable[[], None] | None = None
    """Called whenever the gateway says that the call is over."""

    on_event: Callable[[CallEvent], None] | None = None
    """Called with each event that is posted."""

    def __init__(
        self, gateway: Gateway, directory: Path, *, retry_after_s: float = FIRST_S
    ) -> None:
        self._gateway = gateway
        self._keeper = Keeper(directory)
        self._pending: deque[CallEvent] = deque()
        self._wake = asyncio.Event()
        self._delivered = asyncio.Event()
        self._delivered.set()
        self._owner: Owner | None = None
        self._task: asyncio.Task[None] | None = None
        self._backoff = Backoff(retry_after_s)
        self._posted = self._shipped = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._over = False

    @property
    def owner(self) -> Owner | None:
        """The call that the events belong to, once it is known."""
        return self._owner

    def own(self, owner: Owner) -> None:
        """Set the call that the events belong to, and start sending. Call it once."""
        assert self._owner is None
        self._owner = owner
        self._keeper.open(owner, self._pending)
        self._keep_shipping()

    def post(
        self,
        type: str,
        data: dict[str, Any] | None = None,
        *,
        at: datetime | None = None,
        id: str | None = None,
    ) -> CallEvent:
        """Append an event to the call's timeline. Give an ``id`` if others may report it, too."""
        event = CallEvent(id=id or new_id("evt"), type=type, data=data or {}, at=at or now())
        self._pending.append(event)
        self._posted += 1
        if self._owner is not None:
            self._keeper.keep(event)
            self._keep_shipping()
        self._delivered.clear()
        self._wake.set()
        if self.on_event is not None:
            self.on_event(event)
        return event

    def _keep_shipping(self) -> None:
        """Start the task that sends events, unless it runs.

        A job whose worker was killed has all its tasks cancelled, and still has to end its call.
        The reason must be delivered before the hang-up, because LiveKit's webhook has none.
        """
        if self._owner is None:
            return
        if self._task is None or self._task.done() or self._task.cancelling():
            self._wake.set()  # resend a batch whose request was cancelled
            self._task = asyncio.create_task(self._ship(self._owner), name="reporter")

    async def delivered(self) -> None:
        """Wait until the gateway has all events posted so far."""
        await self._delivered.wait()

    async def secured(self, within_s: float) -> bool:
        """Wait until the gateway has the events posted so far, up to ``within_s`` seconds, else
        until they are on the disk; while the gateway is known to be away, for the disk alone.

        False: the gateway says that the call is over, or that another agent has taken over.
        """
        patience = within_s if self._keeper.complete else _PATIENT * within_s
        if not await self._has_it(
            0 if self._backoff.failing and self._keeper.complete else patience
        ):
            await self._keeper.settled()
        return not self._over

    async def _has_it(self, within_s: float) -> bool:
        if self._shipped >= self._posted:
            return True
        waiter = (self._posted, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(within_s):
                await waiter[1]
        except TimeoutError:
            return False
        finally:
            self._waiting.remove(waiter)
        return True

    async def told(self, within_s: float) -> bool:
        """Wait as ``delivered`` does; return False if the gateway does not respond in time."""
        try:
            async with asyncio.timeout(within_s):
                await self.delivered()
        except TimeoutError:
            return False
        return True

    async def aclose(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for delivery, then leave the rest to the sweeper.

        If events are in memory only, wait six times as long, because they would be lost.
        """
        if self._task is None:
            if self._pending:
                log.warning("events of an unknown call", extra={"count": len(self._pending)})
            return
        self._keep_shipping()
        try:
            await self._keeper.settled()
            patience = timeout if self._keeper.complete else 6 * timeout
            async with asyncio.timeout(patience):
                await self._delivered.wait()
        except TimeoutError:
            log.warning("events left to the sweeper", extra={"count": len(self._pending)})
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._keeper.aclose(delivered=not self._pending)

    async def _ship(self, owner: Owner) -> None:
        backoff = self._backoff
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                batch = batch_of(self._pending)
                try:
                    over = await self._gateway.post_events(owner.call_id, owner.token, batch)
                    self._over = self._over or over
                    if over and self.on_over is not None:
                        self.on_over()
                except Unavailable as error:
                    if not backoff.failing:
                        log.warning("gateway unavailable", extra={"error": str(error)})
                    await backoff.wait()
                    continue
                except Refused as error:
                    self._reject(batch, str(error))
                backoff.reset()
                for _ in batch:
                    self._pending.popleft()
                self._shipped += len(batch)
                for count, waiter in self._waiting:
                    if count <= self._shipped and not waiter.done():
                        waiter.set_result(None)
            self._keeper.forget()
            await self._keeper.settled()
            if not self._pending:
                self._delivered.set()

    def _reject(self, batch: list[CallEvent], reason: str) -> None:
        log.error("the gateway refused events", extra={"error": reason, "count": len(batch)})
        self._keeper.set_aside(batch, reason)


async def sweep_forever(gateway: Gateway, directory: Path) -> None:
    """Deliver the spools of dead processes, at once and every ten seconds."""
    while True:
        try:
            await sweep(gateway, directory)
        except OSError as error:
            log.error("cannot sweep the spool", extra={"error": str(error)})
        await asyncio.sleep(_SWEEP_EVERY_S)


async def sweep(gateway: Gateway, directory: Path) -> int:
    """Deliver the directory's orphaned spools once; return their number. Raises OSError."""
    shipped = 0
    for path in await asyncio.to_thread(spool.leftovers, directory):
        try:
            shipped += await _ship_leftover(gateway, path)
        except Unavailable:
            break  # the other files would fail, too
    return shipped


async def sweep_call(gateway: Gateway, directory: Path, call_id: str) -> None:
    """Deliver what a dead process has left of this call. Raises Unavailable, OSError.

    Returns when the call has no file any more: the sweeper may have it. Waits a second at most.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + _SWEPT_WITHIN_S
    while files := await asyncio.to_thread(spool.files_of, directory, call_id):
        for path in files:
            await _ship_leftover(gateway, path)
        if clock() > deadline:
            return log.warning("events are still kept", extra={"call_id": call_id})
        await asyncio.sleep(_LOOK_AGAIN_S)


async def _ship_leftover(gateway: Gateway, path: Path) -> bool:
    """Deliver an orphaned spool; return False if it is none. Raises Unavailable, OSError."""
    adopted = await asyncio.to_thread(Spool.adopt, path)
    if adopted is None:
        return False
    try:
        await _ship_all(gateway, adopted)
    except BaseException:
        adopted.release()
        raise
    await asyncio.to_thread(adopted.remove)
    log.info("shipped leftover events", extra={"call_id": adopted.owner.call_id})
    return True


async def _ship_all(gateway: Gateway, adopted: Spool) -> None:
    events = await asyncio.to_thread(adopted.read)
    while batch := batch_of(events):
        del events[: len(batch)]
        try:
            await gateway.post_events(adopted.owner.call_id, adopted.owner.token, batch)
        except Refused as error:
            log.error("the gateway refused leftover events", extra={"error": str(error)})
            adopted.reject(batch, str(error))


def batch_of(events: Iterable[CallEvent]) -> list[CallEvent]:
    """Return the first of the events: as many as one request takes, and at least one."""
    batch: list[CallEvent] = []
    size = 0
    for event in islice(events, BATCH):
        size += len(json.dumps(event.wire()))
        if batch and size > BATCH_BYTES:
            break
        batch.append(event)
    return batch
