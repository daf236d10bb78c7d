"""The number of calls in progress, and of those that the workers can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.places.fleet import Fleet, Kind
from gateway.store.tables import CallRow


@dataclass(frozen=True, slots=True)
class Load:
    """The load before one more call of a tenant. Places and agents: of one kind of line."""

    legs: int
    """Legs of the tenant's unfinished calls, including those of transfers' humans."""
    agents: int
    """The tenant's unfinished calls that hold a place, or wait for one."""
    all_agents: int
    """Those of all tenants."""
    tenants: int
    """Number of tenants with such a call, the asking tenant included."""
    places: int
    """Calls that the live workers can hold at a time; for a draining worker, its current ones."""


Judge = Callable[[Load], None]
"""A function that raises an AppError to refuse the call."""


def _agents(kind: Kind) -> ColumnElement[int]:
    of_kind = CallRow.type == "stream" if kind == "stream" else CallRow.type != "stream"
    return func.sum(case((CallRow.place.is_not(None) & of_kind, 1), else_=0))


_KINDS: tuple[Kind, ...] = ("room", "stream")
_LIVE = {
    kind: select(CallRow.auth_id, func.count() + func.sum(CallRow.human_legs), _agents(kind))
    .where(CallRow.ended_at.is_(None))
    .group_by(CallRow.auth_id)
    for kind in _KINDS
}


async def load_of(connection: AsyncConnection, auth_id: str | None, fleet: Fleet | None) -> Load:
    """Return the load; ``fleet``: of the kind of line, None: of no interest."""
    # Reads the unfinished calls only, which have an index of their own.
    rows = await connection.execute(_LIVE[fleet.kind if fleet else "room"])
    live = {row[0]: (int(row[1]), int(row[2])) for row in rows}
    legs, agents = live.get(auth_id, (0, 0))
    busy = {tenant for tenant, (_, theirs) in live.items() if theirs}
    return Load(
        legs=legs,
        agents=agents,
        all_agents=sum(theirs for _, theirs in live.values()),
        tenants=len(busy | {auth_id}),
        places=fleet.places if fleet else 0,
    )
