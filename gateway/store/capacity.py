"""The number of calls in progress, and of those that the workers can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import bindparam, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import CallRow, WorkerRow

# Workers send a heartbeat each second; one that missed six gets no calls.
WORKER_STALE = timedelta(seconds=7)


@dataclass(frozen=True, slots=True)
class Load:
    """The load before one more call of a tenant."""

    legs: int
    """Legs of the tenant's unfinished calls, including those of transfers' humans."""
    agents: int
    """The tenant's unfinished calls with an agent."""
    all_agents: int
    """The unfinished calls of all tenants with an agent."""
    tenants: int
    """Number of tenants with an unfinished call with an agent, the asking tenant included."""
    places: int
    """Calls that the live workers can hold at a time; for a draining worker, its current ones."""


Judge = Callable[[Load], None]
"""A function that raises an AppError to refuse the call."""


_LEGS = func.count() + func.sum(CallRow.human_legs)
_LIVE = (
    select(CallRow.auth_id, _LEGS, func.count(CallRow.agent_id))
    .where(CallRow.ended_at.is_(None))
    .group_by(CallRow.auth_id)
)
_PLACES = select(
    func.sum(case((WorkerRow.draining, WorkerRow.active), else_=WorkerRow.capacity))
).where(WorkerRow.seen_at >= bindparam("fresh", type_=WorkerRow.seen_at.type))


async def load_of(connection: AsyncConnection, auth_id: str | None, moment: datetime) -> Load:
    # Reads the unfinished calls only, which have an index of their own.
    live = {row[0]: (int(row[1]), int(row[2])) for row in await connection.execute(_LIVE)}
    places = await connection.scalar(_PLACES, {"fresh": moment - WORKER_STALE})
    legs, agents = live.get(auth_id, (0, 0))
    busy = {tenant for tenant, (_, theirs) in live.items() if theirs}
    return Load(
        legs=legs,
        agents=agents,
        all_agents=sum(theirs for _, theirs in live.values()),
        tenants=len(busy | {auth_id}),
        places=int(places or 0),
    )
