"""Records that are looked up through the cache (gateway.cache).

Changes go through the record's store, which invalidates the cache; ``warm`` afterwards saves the
next call a database read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from core.errors import ServerFault, Unavailable
from core.models import PhoneNumber
from gateway.cache.base import Cache
from gateway.store.agents import AgentRecord
from gateway.store.database import Scope

log = logging.getLogger(__name__)

# Ids that fit the record's column and are valid file names on every system.
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

_Record = TypeVar("_Record", bound=AgentRecord | PhoneNumber)


class Kept(Generic[_Record]):
    """Records of one kind by id, read through the cache; the scope is checked on each record."""

    def __init__(
        self,
        cache: Cache,
        key: Callable[[str], str],
        dump: Callable[[_Record], str],
        parse: Callable[[str], _Record],
        load: Callable[[Scope, str], Awaitable[_Record | None]],
    ) -> None:
        self._cache = cache
        self._key = key
        self._dump = dump
        self._parse = parse
        self._load = load

    async def get(self, scope: Scope, record_id: str) -> _Record | None:
        # Ids come from clients: only a valid one may become a cache key.
        if not ID.fullmatch(record_id):
            return None

        async def load() -> str | None:
            loaded = await self._load(Scope(None), record_id)
            return None if loaded is None else self._dump(loaded)

        key = self._key(record_id)
        text = await self._cache.read(key, load)
        if text is None:
            return None
        try:
            record = self._parse(text)
        except ValueError:
            # Cached by another release, or sealed with a key that has been removed.
            await self._cache.forget(key)
            return await self._load(scope, record_id)
        return record if scope.auth_id in (None, record.auth_id) else None

    async def warm(self, record_id: str) -> None:
        try:
            await self.get(Scope(None), record_id)
        except (Unavailable, ServerFault):
            # The next call reads the database.
            log.warning("could not warm the cache", extra={"record_id": record_id})
