"""The live workers of one kind, with the places that are taken, and the calls that wait for one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, cast

from sqlalchemy import bindparam, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from core.jobs import Heartbeat
from gateway.store.call_status import CallType
from gateway.store.tables import CallRow, WorkerRow

# Workers send a heartbeat each second; one that missed six gets no calls.
WORKER_STALE: Final = timedelta(seconds=7)
# One that missed two gets them only if nobody else has a place.
_DOUBTFUL: Final = timedelta(seconds=2.5)
LINGERS: Final = timedelta(seconds=30)
"""How long after the call's end a worker may still be busy with it (worker.server)."""

Kind = Literal["room", "stream"]
"""Of workers: for calls in LiveKit's rooms, or for sessions on WebSockets."""

NotFree = Literal["no_worker", "workers_draining", "workers_full"]
"""Why no worker can take a call; ``no_worker``: none has sent a heartbeat lately."""


def kind_of(call_type: CallType) -> Kind:
    return "stream" if call_type == "stream" else "room"


@dataclass(frozen=True, slots=True)
class Seat:
    """The place that a call holds."""

    worker_id: str
    dispatch_name: str
    """The name to which LiveKit dispatches the call's job."""
    by_livekit: bool
    """The name is common to several workers, and LiveKit chooses among them."""
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A worker with a recent heartbeat."""

    seat: Seat
    capacity: int
    used: int
    draining: bool
    seen_at: datetime

    @property
    def free(self) -> int:
        return 0 if self.draining else max(0, self.capacity - self.used)

    @property
    def load(self) -> float:
        return self.used / self.capacity if self.capacity else 1.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers and the line as they are at a moment; exact while the lock of places is held."""

    kind: Kind
    members: Sequence[Member]
    line: Sequence[str]
    """The calls that wait, first come first."""
    elsewhere: int
    """Places that are held on workers that are silent, or gone."""
    at: datetime

    @property
    def free(self) -> int:
        return sum(member.free for member in self.members)

    @property
    def taken(self) -> int:
        return self.elsewhere + sum(member.used for member in self.members)

    @property
    def places(self) -> int:
        return self.elsewhere + sum(
            member.used if member.draining else member.capacity for member in self.members
        )

    def best(self, avoid: str | None = None) -> Seat | None:
        """Return the least loaded worker with a free place; ``avoid``, and silent ones, last."""
        free = [member for member in self.members if member.free]
        if not free:
            return None

        def rank(member: Member) -> tuple[bool, bool, float, float]:
            doubtful = self.at - member.seen_at > _DOUBTFUL
            return doubtful, member.seat.worker_id == avoid, member.load, random.random()

        return min(free, key=rank).seat

    def member(self, worker_id: str | None) -> Member | None:
        return next((one for one in self.members if one.seat.worker_id == worker_id), None)

    @property
    def why(self) -> NotFree | None:
        """Return why there is no free place; None: there is one."""
        if not self.members:
            return "no_worker"
        if all(member.draining for member in self.members):
            return "workers_draining"
        return None if self.free else "workers_full"


_WORKERS = select(WorkerRow.__table__).where(
    WorkerRow.seen_at >= bindparam("fresh", type_=WorkerRow.seen_at.type)
)
_TAKEN = (
    select(CallRow.place_worker, CallRow.type, func.count())
    .where(
        CallRow.place == "held",
        or_(
            CallRow.ended_at.is_(None),
            CallRow.ended_at > bindparam("lingers", type_=CallRow.created_at.type),
        ),
    )
    .group_by(CallRow.place_worker, CallRow.type)
)
_LINE = (
    select(CallRow.id, CallRow.type)
    .where(
        CallRow.place == "wanted",
        CallRow.ended_at.is_(None),
        CallRow.created_at > bindparam("since", type_=CallRow.created_at.type),
    )
    .order_by(CallRow.created_at, CallRow.id)
)


async def fleet_of(
    connection: AsyncConnection,
    kind: Kind,
    agent_name: str,
    moment: datetime,
    waiting_for: timedelta,
) -> Fleet:
    """Read the fleet. ``waiting_for``: how long a call waits; an older one was left behind."""
    workers = (await connection.execute(_WORKERS, {"fresh": moment - WORKER_STALE})).mappings()
    counts = await connection.execute(_TAKEN, {"lingers": moment - LINGERS})
    taken: Counter[str | None] = Counter()
    for worker_id, call_type, count in counts:
        if kind_of(cast(CallType, call_type)) == kind:
            taken[worker_id] += count
    line = await connection.execute(_LINE, {"since": moment - waiting_for})
    members = []
    for row in workers.all():
        held = taken.pop(row["worker_id"], 0)
        if row["agent_name"] != agent_name or (row["address"] is not None) != (kind == "stream"):
            continue
        members.append(_member(row, held))
    return Fleet(
        kind=kind,
        members=members,
        line=[row.id for row in line if kind_of(row.type) == kind],
        elsewhere=sum(taken.values()),
        at=moment,
    )


async def unbooked(connection: AsyncConnection, beat: Heartbeat) -> int | None:
    """Return how many of the worker's calls hold no place there: they have ended, or moved."""
    if beat.calls is None:
        return None
    held = select(func.count()).where(
        CallRow.id.in_(beat.calls), CallRow.place_worker == beat.worker_id
    )
    return len(beat.calls) - (await connection.scalar(held) or 0)


def _member(row: Any, held: int) -> Member:
    rest = row["unbooked"]
    return Member(
        seat=seat_of(row),
        capacity=row["capacity"],
        # Of workers with a name in common, LiveKit may choose one whose place is not booked.
        used=max(held, row["active"]) if rest is None else held + rest,
        draining=bool(row["draining"]),
        seen_at=row["seen_at"],
    )


def seat_of(row: Any) -> Seat:
    """Return the seat on the worker of this row."""
    return Seat(
        worker_id=row["worker_id"],
        dispatch_name=row["dispatch_name"] or row["agent_name"],
        by_livekit=row["dispatch_name"] is None,
        address=row["address"],
    )
