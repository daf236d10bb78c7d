"""Lookup of the number that a call came in by or goes out from."""

from __future__ import annotations

from core.models import PhoneNumber
from gateway.cache.base import Cache, number_key
from gateway.lookup.kept import Kept
from gateway.store.database import Scope
from gateway.store.numbers import NumberStore


class Numbers:
    """Looks phone numbers up by id; each names the agent that it is bound to."""

    def __init__(self, store: NumberStore, cache: Cache) -> None:
        self._records = Kept(
            cache,
            number_key,
            PhoneNumber.model_dump_json,
            PhoneNumber.model_validate_json,
            store.get,
        )

    async def get(self, scope: Scope, number_id: str) -> PhoneNumber | None:
        """Return the number's current record, if the scope owns it. Raises Unavailable."""
        return await self._records.get(scope, number_id)

    async def warm(self, number_id: str) -> None:
        """Load the number into the cache after it was attached, bound or changed."""
        await self._records.warm(number_id)
