"""The cache that several gateways share: ``CACHE_URL=redis://…`` (see gateway.cache.base)."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.cache.base import TTL_S, Cache, Load

log = logging.getLogger(__name__)

T = TypeVar("T")

DEADLINE_S = 0.2
"""A caller is waiting: after this time the database is read instead."""
_LEASE_S = 10.0
_RETRY_S = 1.0
_CONNECTIONS = 32

# Without a version: gateways of two releases that run side by side must invalidate shared keys.
_PREFIX = "switchroom:"
_PROBE = f"{_PREFIX}probe"
_LEASE, _VALUE = "L", "V"

# Returns the value or lease; if there is none, sets the lease ARGV[1] for ARGV[2] ms.
_LOOK = """
local kept = redis.call('GET', KEYS[1])
if not kept then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return kept
"""
# Stores the value ARGV[2] for ARGV[3] ms if the lease ARGV[1] still stands.
_KEEP = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
"""


class _Away(Exception):
    """Redis did not answer, or not in time."""


class RedisCache(Cache):
    """A cache in Redis. Every command has a deadline; after a failure Redis is bypassed.

    It is used again once it answers. Keys that could not be invalidated meanwhile are remembered:
    this gateway reads them from the database, and deletes them in Redis before it trusts Redis
    again. Only if this process dies first do other gateways see the old value, at most until it
    expires.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl_s: float = TTL_S,
        deadline_s: float = DEADLINE_S,
        retry_s: float = _RETRY_S,
    ) -> None:
        """Redis is connected on first use. Raises ValueError if ``url`` is not valid."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=None,
            decode_responses=True,
            # _ask sets the deadlines. The client's own use asyncio.wait_for, which up to Python
            # 3.11 may swallow a cancellation.
            socket_timeout=None,
            socket_connect_timeout=None,
            # A connection closed while idle shows only in the first command on it: retry once.
            retry=Retry(NoBackoff(), 1),
        )
        self._redis = Redis.from_pool(pool)
        self._look = self._redis.register_script(_LOOK)
        self._keep = self._redis.register_script(_KEEP)
        self._ttl_s = ttl_s
        self._deadline_s = deadline_s
        self._retry_s = retry_s
        self._away = False
        # Keys not yet deleted in Redis, with the time until which an old value may be there.
        self._unsaid: dict[str, float] = {}
        self._returning: asyncio.Task[None] | None = None

    async def read(self, key: str, load: Load) -> str | None:
        if not self._trusts(key):
            return await load()
        lease = _LEASE + secrets.token_hex(12)
        try:
            kept = await self._ask(
                lambda: self._look(keys=[_PREFIX + key], args=[lease, _ms(_LEASE_S)])
            )
        except _Away:
            return await load()
        if kept is not None and kept.startswith(_VALUE):
            return str(kept.removeprefix(_VALUE))
        found = await load()
        if kept is None and found is not None and self._trusts(key):
            arguments = [lease, _VALUE + found, _ms(self._ttl_s)]
            try:
                await self._ask(lambda: self._keep(keys=[_PREFIX + key], args=arguments))
            except _Away:
                pass  # _ask has noted it; the value was found anyway
        return found

    async def forget(self, *keys: str) -> None:
        until = asyncio.get_running_loop().time() + self._ttl_s
        changed = dict.fromkeys(keys, until)
        self._unsaid.update(changed)
        try:
            if not self._away:
                await self._ask(lambda: self._delete(keys))
                self._said(changed)
        except _Away:
            self._unsaid.update(changed)  # deleted when Redis is back
        except asyncio.CancelledError:
            self._leave_alone()
            raise

    async def aclose(self) -> None:
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.wait({self._returning})
        try:
            if self._unsaid:
                await self._ask(lambda: self._delete(self._unsaid))
        except _Away:
            log.warning("the cache was not told of changes", extra={"count": len(self._unsaid)})
        finally:
            if self._returning is not None:
                self._returning.cancel()
            await self._redis.aclose()

    def _trusts(self, key: str) -> bool:
        return not self._away and key not in self._unsaid

    async def _delete(self, keys: Iterable[str]) -> None:
        await self._redis.delete(*(_PREFIX + key for key in keys))

    def _said(self, told: dict[str, float]) -> None:
        """Drop deleted keys from the list, except those that have changed again since."""
        for key, until in told.items():
            if self._unsaid.get(key) == until:
                del self._unsaid[key]

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T:
        """Run a command within the deadline. On failure, raise _Away and bypass Redis from then."""
        try:
            async with asyncio.timeout(self._deadline_s):
                return await command()
        except (RedisError, OSError, TimeoutError) as error:
            if not self._away:
                # The error's text may quote the URL, with its password.
                problem = type(error).__name__
                log.warning("cache is away; the database answers", extra={"problem": problem})
            self._leave_alone()
            raise _Away from None

    def _leave_alone(self) -> None:
        self._away = True
        if self._returning is None or self._returning.done():
            self._returning = asyncio.create_task(self._return(), name="cache")

    async def _return(self) -> None:
        """Wait until Redis answers, and delete the changed keys before it is used again."""
        clock = asyncio.get_running_loop().time
        while self._away:
            await asyncio.sleep(self._retry_s)
            self._said({key: until for key, until in self._unsaid.items() if until < clock()})
            try:
                async with asyncio.timeout(self._deadline_s):
                    # Probe with a write: a full instance or a replica answers reads only.
                    await self._redis.set(_PROBE, "", px=1)
                while self._unsaid:
                    told = dict(list(self._unsaid.items())[:1000])
                    async with asyncio.timeout(self._deadline_s):
                        await self._delete(told)
                    self._said(told)
            except (RedisError, OSError, TimeoutError):
                continue
            self._away = False
        log.info("cache is back")


def _ms(seconds: float) -> Any:
    return round(seconds * 1000)
