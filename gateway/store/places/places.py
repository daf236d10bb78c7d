"""Reserve places of workers for calls, for all gateways together, one call at a time.

The unfinished call is the reservation: it names the worker whose place it holds. It is given back
by the events that end the agent's part (gateway.store.call_status.fold).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from core.models import now
from gateway.store.database import Database, one_at_a_time, whole
from gateway.store.places.fleet import (
    LINGERS,
    Fleet,
    Kind,
    NotFree,
    Seat,
    fleet_of,
    seat_of,
)
from gateway.store.tables import CallRow, WorkerRow

_LOCK: Final = "places of workers"
_AT_ONCE: Final = 50
# A gateway that waits for a call's place asks for it several times a second until then.
_GRACE: Final = timedelta(seconds=5)


class NoPlace(Exception):
    """No worker can take the call."""

    def __init__(self, why: NotFree) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Wish:
    """A new call's wish for a place."""

    agent_name: str
    """AGENT_NAME of the workers."""
    patience_s: float = 0.0
    """How long the call may wait for it; 0: it needs one now."""
    line_s: float = 0.0
    """How long others wait, who come first."""


Standing = Literal["held", "wanted", "over"]


async def reserve(
    connection: AsyncConnection, wish: Wish, kind: Kind, moment: datetime
) -> tuple[Fleet, Seat | None]:
    """Return the fleet, and a seat for one more call; None: it has to wait, or to be refused.

    Nobody else reserves one until this transaction ends.
    """
    await one_at_a_time(connection, _LOCK)
    line = timedelta(seconds=max(wish.line_s, wish.patience_s)) + _GRACE
    fleet = await fleet_of(connection, kind, wish.agent_name, moment, line)
    return fleet, fleet.best() if fleet.free > len(fleet.line) else None


class Places:
    """Every method is one transaction."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    @whole
    async def fleet(self, agent_name: str, kind: Kind, line_s: float = 0.0) -> Fleet:
        """Return the workers of the kind, and who waits, if for no longer than ``line_s``.

        It may have changed a moment later.
        """
        line = timedelta(seconds=line_s) + _GRACE
        async with self._database.read() as connection:
            return await fleet_of(connection, kind, agent_name, self._clock(), line)

    @whole
    async def seat(self, call_id: str) -> Seat | None:
        """Return the place that the call holds; None: none, or its worker is forgotten."""
        query = select(WorkerRow.__table__).join(
            CallRow, CallRow.place_worker == WorkerRow.worker_id
        )
        query = query.where(CallRow.id == call_id, CallRow.place == "held")
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else seat_of(row)

    @whole
    async def move(self, call_id: str, kind: Kind, agent_name: str) -> Seat | None:
        """Reserve a place on another worker, before those that wait, and give up the present one.

        If no other has one, and the present worker is live, the call stays there. None: there is
        no place for it now, or the call has ended.
        """
        query = select(CallRow.place_worker, CallRow.ended_at).where(CallRow.id == call_id)
        async with self._database.write() as connection:
            await one_at_a_time(connection, _LOCK)
            row = (await connection.execute(query)).one_or_none()
            if row is None or row.ended_at is not None:
                return None
            fleet = await fleet_of(connection, kind, agent_name, self._clock(), timedelta(0))
            if seat := fleet.best(avoid=row.place_worker):
                await _hold(connection, call_id, seat)
                return seat
            present = fleet.member(row.place_worker)
            return None if present is None or present.draining else present.seat

    @whole
    async def advance(
        self, agent_name: str, line_s: float, mine: Sequence[str]
    ) -> dict[str, Standing]:
        """Seat the calls that come next in the lines, of any gateway; return where ``mine`` are."""
        moment, line = self._clock(), timedelta(seconds=line_s) + _GRACE
        async with self._database.read() as connection:
            fleets = [
                await fleet_of(connection, kind, agent_name, moment, line)
                for kind in ("room", "stream")
            ]
        for fleet in fleets:
            if fleet.line and fleet.free:
                await self._seat_next(agent_name, fleet.kind, line)
        query = select(CallRow.id, CallRow.place, CallRow.ended_at).where(CallRow.id.in_(mine))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        found: dict[str, Standing] = dict.fromkeys(mine, "over")
        for row in rows:
            if row.ended_at is None and row.place is not None:
                found[row.id] = row.place
        return found

    async def _seat_next(self, agent_name: str, kind: Kind, line: timedelta) -> None:
        async with self._database.write() as connection:
            await one_at_a_time(connection, _LOCK)
            for _ in range(_AT_ONCE):
                fleet = await fleet_of(connection, kind, agent_name, self._clock(), line)
                seat = fleet.best()
                if seat is None or not fleet.line:
                    return
                await _hold(connection, fleet.line[0], seat)

    @whole
    async def sweep(self) -> None:
        """Give back the places of calls whose agents have not said that they left."""
        async with self._database.write() as connection:
            await connection.execute(
                update(CallRow)
                .where(CallRow.place.is_not(None), CallRow.ended_at < self._clock() - 2 * LINGERS)
                .values(place=None, place_worker=None)
            )


async def _hold(connection: AsyncConnection, call_id: str, seat: Seat) -> None:
    await connection.execute(
        update(CallRow)
        .where(CallRow.id == call_id, CallRow.ended_at.is_(None))
        .values(place="held", place_worker=seat.worker_id)
    )
