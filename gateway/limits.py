"""How many calls a tenant may begin in a second, and have at a time.

CALLS_PER_SECOND is counted by each gateway for itself (n gateways let n times as many begin);
MAX_CONCURRENT_CALLS in the database, so for all of them together. The operator who names no
tenant counts as one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from core.errors import TooManyRequests
from core.models import Call, CallEvent
from core.store import NewCall, Store, TooManyLive

# Above so many tenants, those whose bucket is full again are forgotten.
_MANY = 1000
_RETRY_CONCURRENCY_S = 5


@dataclass(slots=True)
class _Bucket:
    """A token bucket; ``tokens`` as they were at ``at`` (seconds of the clock)."""

    tokens: float
    at: float


class CallLimits:
    def __init__(
        self,
        store: Store,
        *,
        calls_per_second: float | None = None,
        max_concurrent: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """None: no limit. A burst may be one second's worth, at least one call."""
        self._store = store
        self._rate = calls_per_second
        self._max_concurrent = max_concurrent
        self._clock = clock
        self._buckets: dict[str | None, _Bucket] = {}

    def take(self, auth_id: str | None) -> None:
        """One outbound call begins. Raises TooManyRequests ``RATE_LIMITED``."""
        if self._rate is None:
            return
        burst = max(1.0, self._rate)
        now = self._clock()
        if len(self._buckets) > _MANY:
            self._forget(now, burst)
        bucket = self._buckets.setdefault(auth_id, _Bucket(burst, now))
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        if bucket.tokens < 1:
            raise TooManyRequests(
                f"More than {self._rate:g} calls per second",
                retry_after_s=max(1, math.ceil((1 - bucket.tokens) / self._rate)),
            )
        bucket.tokens -= 1

    async def insert(self, new: NewCall, first: CallEvent, *more: CallEvent) -> Call:
        """Store.insert_call, unless the tenant has as many calls as it may.

        Raises TooManyRequests ``CONCURRENCY_LIMIT``, LiveIdentity, HeldByToken.
        """
        try:
            return await self._store.insert_call(new, first, *more, max_live=self._max_concurrent)
        except TooManyLive:
            raise self._too_many() from None

    async def check(self, auth_id: str | None) -> None:
        """A look before anything is prepared; only ``insert`` decides.

        Raises TooManyRequests ``CONCURRENCY_LIMIT``.
        """
        limit = self._max_concurrent
        if limit is not None and await self._store.live_calls(auth_id) >= limit:
            raise self._too_many()

    def _too_many(self) -> TooManyRequests:
        return TooManyRequests(
            f"{self._max_concurrent} calls are under way, which is the limit",
            code="CONCURRENCY_LIMIT",
            retry_after_s=_RETRY_CONCURRENCY_S,
        )

    def _forget(self, now: float, burst: float) -> None:
        rate = self._rate or 0
        self._buckets = {
            auth_id: bucket
            for auth_id, bucket in self._buckets.items()
            if bucket.tokens + (now - bucket.at) * rate < burst
        }
