"""How many calls are in progress, and how many the workers can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from core.models import now
from gateway.store.tables import CallRow, WorkerRow

# A worker beats every 2 s; one that missed three is not offered calls.
WORKER_STALE = timedelta(seconds=7)


@dataclass(frozen=True, slots=True)
class Load:
    """What is under way, before one more call of a tenant."""

    legs: int
    """Of the tenant's unfinished calls, with the phones of transfers' humans."""
    agents: int
    """The tenant's unfinished calls that have an agent."""
    all_agents: int
    tenants: int
    """How many have an unfinished call with an agent, or are the one that asks."""
    places: int
    """Calls that the live workers can hold at a time; a draining one, those it has."""


Judge = Callable[[Load], None]
"""Raises what the call is refused with."""


_LEGS = func.count() + func.sum(CallRow.human_legs)
_LIVE = (
    select(CallRow.auth_id, _LEGS, func.count(CallRow.agent_id))
    .where(CallRow.ended_at.is_(None))
    .group_by(CallRow.auth_id)
)
_PLACES = select(
    func.sum(case((WorkerRow.draining, WorkerRow.active), else_=WorkerRow.capacity))
).where(WorkerRow.seen_at >= bindparam("fresh", type_=WorkerRow.seen_at.type))


async def load_of(connection: AsyncConnection, auth_id: str | None) -> Load:
    # Few rows, in an index of their own: the calls that are under way.
    live = {row[0]: (int(row[1]), int(row[2])) for row in await connection.execute(_LIVE)}
    places = await connection.scalar(_PLACES, {"fresh": now() - WORKER_STALE})
    legs, agents = live.get(auth_id, (0, 0))
    busy = {tenant for tenant, (_, theirs) in live.items() if theirs}
    return Load(
        legs=legs,
        agents=agents,
        all_agents=sum(theirs for _, theirs in live.values()),
        tenants=len(busy | {auth_id}),
        places=int(places or 0),
    )
