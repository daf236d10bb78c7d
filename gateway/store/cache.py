"""What calls look up again and again, kept near: ``CACHE_URL`` = ``memory://`` or ``redis://…``.

The protocol is the same for every backend, and cannot bring back an old value however slow a
reader or a writer is:

- ``read`` takes a *lease* on the key before it asks the database, and keeps what it got only if
  the lease is still there then;
- ``forget``, after a commit, drops the value and every lease.

So whatever is kept was read after the last commit that somebody forgot. The stores that write
what is kept here call ``forget`` themselves (gateway.store.agents, gateway.store.numbers); nobody
else has to.

A cache never fails a caller: when it is away or slow, the database answers.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

TTL_S = 30 * 60.0
_MAX_MEMORY = 64 * 1024 * 1024

Load = Callable[[], Awaitable[str | None]]
"""Asks the database; None: there is nothing by that key."""


def agent_key(agent_id: str) -> str:
    return f"agent:{agent_id}"


def number_key(number_id: str) -> str:
    return f"number:{number_id}"


class Cache(ABC):
    """Open with ``open_cache``; safe for concurrent use."""

    @abstractmethod
    async def read(self, key: str, load: Load) -> str | None:
        """What is kept, else what ``load`` gives (kept, unless None). Raises what it raises."""

    @abstractmethod
    async def forget(self, *keys: str) -> None:
        """After a commit: the database holds something else by these keys, or nothing.

        Never raises; what cannot be told to the others now is told as soon as possible.
        """

    async def aclose(self) -> None:
        """End what runs in the background."""
        return None


class NoCache(Cache):
    """Keeps nothing."""

    async def read(self, key: str, load: Load) -> str | None:
        return await load()

    async def forget(self, *keys: str) -> None:
        return None


class MemoryCache(Cache):
    """Of this process. Right only where no other process writes the same database."""

    def __init__(
        self,
        *,
        ttl_s: float = TTL_S,
        max_characters: int = _MAX_MEMORY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_s = ttl_s
        self._room = max_characters
        self._clock = clock
        # The least recently used first.
        self._kept: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._leases: dict[str, object] = {}

    async def read(self, key: str, load: Load) -> str | None:
        if (kept := self._kept.get(key)) is not None:
            until, value = kept
            if self._clock() < until:
                self._kept.move_to_end(key)
                return value
            self._drop(key)
        lease = object()
        mine = self._leases.setdefault(key, lease) is lease
        try:
            found = await load()
            if found is not None and self._leases.get(key) is lease:
                self._keep(key, found)
            return found
        finally:
            if mine and self._leases.get(key) is lease:
                del self._leases[key]

    async def forget(self, *keys: str) -> None:
        for key in keys:
            self._drop(key)
            self._leases.pop(key, None)

    def _keep(self, key: str, value: str) -> None:
        self._drop(key)
        self._kept[key] = (self._clock() + self._ttl_s, value)
        self._room -= len(value)
        while self._room < 0:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: str) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._room += len(kept[1])


def open_cache(url: str, *, shared_database: bool) -> Cache:
    """The cache of ``CACHE_URL``. Raises ValueError (never with the URL: it may hold a password).

    ``memory://`` keeps nothing when ``shared_database``: what another gateway writes to the same
    PostgreSQL would not be seen here for half an hour.
    """
    try:
        scheme = urlsplit(url).scheme
        if scheme == "memory":
            return NoCache() if shared_database else MemoryCache()
        if scheme in {"redis", "rediss"}:
            from gateway.store.redis_cache import RedisCache

            return RedisCache(url)
    except ValueError:
        pass
    raise ValueError("CACHE_URL must be memory://, or redis://host:port/database") from None
