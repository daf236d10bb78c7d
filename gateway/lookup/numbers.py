"""Which number a call came in by or goes out from."""

from __future__ import annotations

from core.models import PhoneNumber
from gateway.cache.base import Cache, number_key
from gateway.lookup.kept import Kept
from gateway.store.database import Scope
from gateway.store.numbers import NumberStore


class Numbers:
    """Looks phone numbers up by id, with the agent each is bound to."""

    def __init__(self, store: NumberStore, cache: Cache) -> None:
        self._records = Kept(
            cache,
            number_key,
            PhoneNumber.model_dump_json,
            PhoneNumber.model_validate_json,
            store.get,
        )

    async def get(self, scope: Scope, number_id: str) -> PhoneNumber | None:
        """The number as it is now, if it is the scope's. Raises Unavailable (no database)."""
        return await self._records.get(scope, number_id)

    async def warm(self, number_id: str) -> None:
        """Keep the number ready for its next call; after it was attached, bound or changed."""
        await self._records.warm(number_id)
