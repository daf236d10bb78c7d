"""Sends the deliveries in the outbox: several at a time per endpoint, in order for each call.

An endpoint that does not answer occupies a slot until its timeout. So an endpoint whose last
attempt failed gets one slot until an attempt succeeds; other endpoints are not affected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

import aiohttp

from core.errors import AppError, Unavailable
from core.models import new_id, now
from core.url_guard import read_bounded
from core.webhooks.faults import problem, refusal
from core.webhooks.signing import signed_headers
from gateway.store.deliveries import Delivery
from gateway.store.outbox import Outbox, Outcome
from gateway.store.webhooks import WebhookEndpoint, WebhookStore

log = logging.getLogger(__name__)

SLOTS = 256
SLOTS_PER_ENDPOINT = 8
# Another gateway may have enqueued a delivery, or a retry may have become due.
POLL_S = 1.0
SWEEP_S = 3600.0
# Time for requests in flight when the gateway stops: enough for most, but not for the slowest.
DRAIN_S = 5.0

_RETRY_FIRST_S, _RETRY_FACTOR = 5.0, 4.0
_SHOWN_BYTES = 1_000
_READ_BYTES = 16 * 1024
_FINISH_PAUSES_S = (0.2, 0.4, 0.8, 1.6, 0.0)
_USER_AGENT = "Switchroom-Webhooks/1"


def backoff(attempts: int) -> timedelta:
    """Return the delay before a retry: 5 s, 20 s, 80 s, 5 min, 21 min, each ±20 %.

    The jitter spreads the retries for an endpoint that was down.
    """
    seconds = _RETRY_FIRST_S * _RETRY_FACTOR ** (attempts - 1)
    return timedelta(seconds=seconds * random.uniform(0.8, 1.2))


class Sender:
    """Sends deliveries while ``run`` runs; call ``aclose`` afterwards. Each gateway has one."""

    def __init__(
        self,
        outbox: Outbox,
        endpoints: WebhookStore,
        session: aiohttp.ClientSession,
        *,
        retry_in: Callable[[int], timedelta] = backoff,
    ) -> None:
        """``session`` must be a guarded one (core.url_guard)."""
        self._outbox = outbox
        self._endpoints = endpoints
        self._session = session
        self._retry_in = retry_in
        self.lease = new_id("gw")
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight: set[int] = set()
        self._busy: Counter[str] = Counter()
        self._ailing: set[str] = set()

    async def run(self) -> None:
        """Send until cancelled. A round that fails is logged, and the next one is tried."""
        bell, renew_s = self._outbox.bell, self._outbox.leased_for.total_seconds() / 3
        async with asyncio.TaskGroup() as group:
            group.create_task(_repeat(self._send_due, POLL_S, bell), name="webhooks")
            group.create_task(_repeat(self._renew, renew_s), name="leases")
            group.create_task(_repeat(self._outbox.sweep, SWEEP_S), name="old deliveries")

    async def aclose(self, grace_s: float = DRAIN_S) -> None:
        """Let requests in flight finish, then release the lease for other processes at once."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._outbox.release(self.lease)
        except AppError as error:  # the deliveries are free when the lease expires
            log.warning("webhooks not released", extra={"problem": error.code})

    async def send_now(self, delivery: Delivery, endpoint: WebhookEndpoint) -> Delivery | None:
        """Attempt a delivery that was enqueued under this lease. None: the lease was lost."""
        self._in_flight.add(delivery.seq)
        try:
            outcome = await self._attempt(delivery, endpoint)
            return await self._outbox.finish(delivery, self.lease, outcome, timedelta())
        finally:
            self._in_flight.discard(delivery.seq)

    async def _send_due(self) -> None:
        free = SLOTS - len(self._tasks)
        if free <= 0:
            return
        due = await self._outbox.claim(
            self.lease,
            self._room,
            free,
            most=SLOTS_PER_ENDPOINT,
            full=[endpoint_id for endpoint_id in self._busy if self._room(endpoint_id) <= 0],
        )
        if not due:
            return
        endpoints = await self._endpoints.by_ids({delivery.endpoint_id for delivery in due})
        for delivery in due:
            self._busy[delivery.endpoint_id] += 1
            self._in_flight.add(delivery.seq)
            task = asyncio.create_task(self._send(delivery, endpoints), name=delivery.id)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _room(self, endpoint_id: str) -> int:
        slots = 1 if endpoint_id in self._ailing else SLOTS_PER_ENDPOINT
        return slots - self._busy[endpoint_id]

    async def _renew(self) -> None:
        if self._in_flight:
            await self._outbox.renew(self.lease, self._in_flight)

    async def _send(
        self, delivery: Delivery, endpoints: Mapping[str, WebhookEndpoint | None]
    ) -> None:
        endpoint_id = delivery.endpoint_id
        try:
            if endpoint_id not in endpoints:
                outcome = Outcome(error="The webhook was removed", final=True)
            elif (endpoint := endpoints[endpoint_id]) is None:
                outcome = Outcome(error="The signing secret cannot be read")
            else:
                outcome = await self._attempt(delivery, endpoint)
            if outcome.error is None or outcome.final:
                self._ailing.discard(endpoint_id)
            else:
                self._ailing.add(endpoint_id)
            await self._finish(delivery, outcome)
        except Exception:  # one delivery must not stop the others; its lease will expire
            log.exception("webhook delivery failed", extra={"delivery_id": delivery.id})
        finally:
            self._in_flight.discard(delivery.seq)
            self._busy[endpoint_id] -= 1
            if not self._busy[endpoint_id]:
                del self._busy[endpoint_id]
            self._outbox.bell.set()  # the next delivery of the lane is due, or a slot is free

    async def _finish(self, delivery: Delivery, outcome: Outcome) -> None:
        retry_in = self._retry_in(delivery.attempts + 1)
        for pause in _FINISH_PAUSES_S:
            try:
                kept = await self._outbox.finish(delivery, self.lease, outcome, retry_in)
            except Unavailable:
                await asyncio.sleep(pause)
                continue
            if kept is not None and kept.status == "failed":
                facts = {"delivery_id": kept.id, "http_status": kept.http_status}
                log.warning("webhook delivery given up", extra=facts)
            return

    async def _attempt(self, delivery: Delivery, endpoint: WebhookEndpoint) -> Outcome:
        headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": _USER_AGENT,
            **signed_headers(
                endpoint.secret,
                message_id=delivery.id,
                event=delivery.event,
                body=delivery.body,
                at=now(),
            ),
        }
        try:
            async with (
                asyncio.timeout(endpoint.timeout_s),
                self._session.post(
                    endpoint.url,
                    data=delivery.body.encode(),
                    headers=headers,
                    allow_redirects=False,
                ) as response,
            ):
                answer = _shown(await read_bounded(response, _READ_BYTES))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Outcome(error=problem(error, endpoint.timeout_s))
        return Outcome(response.status, refusal(response.status), answer)


async def _repeat(
    work: Callable[[], Awaitable[None]], every_s: float, bell: asyncio.Event | None = None
) -> None:
    """Run ``work`` every ``every_s`` seconds, or sooner when ``bell`` is set."""
    bell = bell or asyncio.Event()
    while True:
        bell.clear()
        try:
            await work()
        except AppError as error:
            log.warning("webhooks have to wait", extra={"problem": error.code})
        except Exception:
            log.exception("webhooks have to wait")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await bell.wait()


def _shown(answer: bytes) -> str | None:
    # PostgreSQL cannot store NUL.
    return answer[:_SHOWN_BYTES].decode(errors="replace").replace("\0", "\ufffd") or None
