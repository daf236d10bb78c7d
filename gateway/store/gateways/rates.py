"""How many calls an owner may begin per second, counted by all gateways together.

A token bucket per owner, as a row: ``tokens`` it held at ``at``. The gateways' clocks may differ: a
clock that is behind the row's time finds no time passed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select

from core.models import now
from gateway.store.database import Database, one_at_a_time, whole
from gateway.store.gateways.tables import RateRow

_TABLE: Any = RateRow.__table__


class Rates:
    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    @whole
    async def take(self, auth_id: str | None, rate: float) -> float:
        """Take one token of a bucket that gets ``rate`` per second, and holds one second's worth,
        at least one.

        Return 0, or the seconds until there is one. Raises Unavailable.
        """
        owner, burst, moment = auth_id or "", max(1.0, rate), self._clock()
        async with self._database.write() as connection:
            await one_at_a_time(connection, f"rate of {owner}")
            query = select(_TABLE).where(_TABLE.c.owner == owner)
            row = (await connection.execute(query)).mappings().one_or_none()
            tokens, at = burst, moment
            if row is not None:
                at = max(moment, row["at"])
                tokens = min(burst, row["tokens"] + (at - row["at"]).total_seconds() * rate)
            if tokens < 1:
                return (1 - tokens) / rate
            values = {"owner": owner, "tokens": tokens - 1, "at": at}
            added = self._database.insert(RateRow).values(**values)
            await connection.execute(
                added.on_conflict_do_update(index_elements=["owner"], set_=values)
            )
        return 0.0

    @whole
    async def sweep(self, rate: float) -> None:
        """Delete the buckets that are full again."""
        full_s = max(1.0, rate) / rate
        async with self._database.write() as connection:
            full = _TABLE.c.at < self._clock() - timedelta(seconds=full_s)
            await connection.execute(delete(_TABLE).where(full))
