"""The cache of one process: ``CACHE_URL=memory://`` (see gateway.cache.base)."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from gateway.cache.base import TTL_S, Cache, Load

_MAX_MEMORY = 64 * 1024 * 1024


class MemoryCache(Cache):
    """A cache in this process. Correct only if no other process writes the same database."""

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
        # In order of use, the least recently used first.
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
