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

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

TTL_S = 30 * 60.0

Load = Callable[[], Awaitable[str | None]]
"""Asks the database; None: there is nothing by that key."""


def agent_key(agent_id: str) -> str:
    return f"agent:{agent_id}"


def number_key(number_id: str) -> str:
    return f"number:{number_id}"


class Cache(ABC):
    """Open with ``gateway.cache.open_cache``; safe for concurrent use."""

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
