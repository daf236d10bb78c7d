"""The gateways that run, and the calls that each follows.

Each counts its heartbeats in a row of its own. Others judge by whether the count moves, on their
own clocks, so that the gateways' clocks may differ. A call is followed by the gateway that created
its record, until another one adopts it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update

from core.models import now
from gateway.store.call_rows import CALLS_TABLE, call_of
from gateway.store.call_status import Call
from gateway.store.database import Database, whole
from gateway.store.gateways.tables import GatewayRow

_TABLE: Any = GatewayRow.__table__


class Gateways:
    def __init__(self, database: Database, us: str, clock: Callable[[], datetime] = now) -> None:
        """``us``: this gateway's id, as in the calls that it inserts (Store.us)."""
        self._database = database
        self.us = us
        self._clock = clock
        self._beat = 0

    @whole
    async def beat(self) -> None:
        """Count one heartbeat of this gateway."""
        self._beat += 1
        values = {"id": self.us, "beat": self._beat, "at": self._clock()}
        added = self._database.insert(GatewayRow).values(**values)
        async with self._database.write() as connection:
            await connection.execute(
                added.on_conflict_do_update(index_elements=["id"], set_=values)
            )

    @whole
    async def beats(self) -> dict[str, int]:
        """Return the counts of all gateways, by their ids."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(_TABLE.c.id, _TABLE.c.beat))
            return {row.id: row.beat for row in rows}

    @whole
    async def forget(self, gateway: str) -> None:
        """Remove one that has stopped: it follows nothing any more."""
        async with self._database.write() as connection:
            await connection.execute(delete(_TABLE).where(_TABLE.c.id == gateway))

    @whole
    async def left_behind(self, alive: Collection[str]) -> list[tuple[Call, str]]:
        """Return the calls that nobody has answered yet and that none of these gateways follows,
        each with the gateway that did."""
        calls = CALLS_TABLE.c
        query = select(CALLS_TABLE).where(
            calls.ended_at.is_(None),
            calls.answered_at.is_(None),
            calls.followed_by.is_not(None),
            calls.followed_by.not_in(list(alive)),
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [(call_of(row), row["followed_by"]) for row in rows]

    @whole
    async def adopt(self, call_id: str, former: str) -> bool:
        """Follow a call that ``former`` followed; False: another gateway was faster."""
        calls = CALLS_TABLE.c
        adopted = (
            update(CALLS_TABLE)
            .where(calls.id == call_id, calls.followed_by == former)
            .values(followed_by=self.us)
        )
        async with self._database.write() as connection:
            return (await connection.execute(adopted)).rowcount == 1
