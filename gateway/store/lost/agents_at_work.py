"""The agents of unfinished calls, by their workers. Read by every gateway, some times a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from gateway.store.call_rows import CALLS_TABLE, call_of
from gateway.store.call_status import Call
from gateway.store.database import Database, whole
from gateway.store.tables import WorkerRow

_WORKERS = WorkerRow.__table__
_LIVE = CALLS_TABLE.c.ended_at.is_(None)
_BEATS = (
    select(CALLS_TABLE.c.agent_worker, _WORKERS.c.seen_at, _WORKERS.c.address)
    .distinct()
    .outerjoin(_WORKERS, _WORKERS.c.worker_id == CALLS_TABLE.c.agent_worker)
    .where(_LIVE, CALLS_TABLE.c.agent_worker.is_not(None))
)
_WITHOUT = select(CALLS_TABLE).where(
    _LIVE, CALLS_TABLE.c.agent_worker.is_(None), CALLS_TABLE.c.agent_epoch > 0
)


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker's last heartbeat."""

    seen_at: datetime | None
    """By the clock of the gateway that took it; None: the worker has sent none."""
    address: str | None
    """Of a stream worker."""


class AgentsAtWork:
    """Every method raises Unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @whole
    async def beats(self) -> dict[str, Beat]:
        """Return the last heartbeat of each worker that has an agent in an unfinished call."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_BEATS)).all()
        return {worker: Beat(seen_at, address) for worker, seen_at, address in rows}

    @whole
    async def calls_of(self, workers: Sequence[str]) -> list[Call]:
        """Return the unfinished calls whose agents these workers have."""
        query = select(CALLS_TABLE).where(_LIVE, CALLS_TABLE.c.agent_worker.in_(workers))
        async with self._database.read() as connection:
            return [call_of(row) for row in (await connection.execute(query)).mappings()]

    @whole
    async def without(self) -> list[Call]:
        """Return the unfinished calls that have lost an agent, and whose present one is not known
        to be at work: it has not joined, or has left."""
        async with self._database.read() as connection:
            return [call_of(row) for row in (await connection.execute(_WITHOUT)).mappings()]
