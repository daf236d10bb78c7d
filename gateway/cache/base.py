"""The cache of records that calls look up: ``CACHE_URL`` = ``memory://`` or ``redis://…``.

The protocol is the same for every backend. It cannot restore an old value, however slow a reader
or a writer is:

- ``read`` takes a *lease* on the key before it reads the database, and caches the result only if
  the lease still stands then.
- ``forget``, after a commit, drops the value and every lease.

So every cached value was read after the last commit that was followed by ``forget``. The stores
that write cached records call ``forget`` themselves (gateway.store.agents, gateway.store.numbers);
no other code has to.

A cache failure never fails a call: if the cache is unreachable or slow, the database is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

TTL_S = 30 * 60.0

Load = Callable[[], Awaitable[str | None]]
"""Reads the database; returns None if there is no such record."""


def agent_key(agent_id: str) -> str:
    return f"agent:{agent_id}"


def number_key(number_id: str) -> str:
    return f"number:{number_id}"


class Cache(ABC):
    """Open with ``gateway.cache.open_cache``; safe for concurrent use."""

    @abstractmethod
    async def read(self, key: str, load: Load) -> str | None:
        """Return the cached value, else the result of ``load``, which is cached unless None.

        Raises what ``load`` raises.
        """

    @abstractmethod
    async def forget(self, *keys: str) -> None:
        """Drop keys after a commit that changed or deleted their records.

        Never raises. If a shared cache is unreachable, the keys are dropped in it as soon as it is
        back.
        """

    async def aclose(self) -> None:
        """Stop the background tasks."""
        return None


class NoCache(Cache):
    """A cache that stores nothing."""

    async def read(self, key: str, load: Load) -> str | None:
        return await load()

    async def forget(self, *keys: str) -> None:
        return None
