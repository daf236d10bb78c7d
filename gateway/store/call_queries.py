"""What is asked about calls and their timelines. Nothing here changes any."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select

from core.models import Turn
from gateway.store.call_rows import (
    EVENTS,
    EVENTS_OF_TYPES,
    FOUND,
    NEWER,
    NEWER_OR_AMONG,
    OWNED,
    CallFilter,
    call_of,
    in_spoken_order,
)
from gateway.store.call_status import Call, StoredEvent
from gateway.store.database import Database, Scope, whole
from gateway.store.tables import CallRow, EventRow

# Both databases accept about 32 000 values in a statement.
_NAMES_AT_ONCE = 10_000


class CallQueries:
    """Every method is one transaction. A part of gateway.store.calls.Store."""

    _database: Database

    @whole
    async def call(self, scope: Scope, call_id: str) -> Call | None:
        async with self._database.read() as connection:
            query = FOUND if scope.auth_id is None else OWNED
            values = {"call": call_id, "auth_id": scope.auth_id}
            row = (await connection.execute(query, values)).mappings().one_or_none()
            return None if row is None else call_of(row)

    @whole
    async def calls(
        self, scope: Scope, where: CallFilter, *, limit: int, offset: int
    ) -> tuple[list[Call], int]:
        """Return a page of calls, newest first, and the total number."""
        query = where.among(select(CallRow.__table__).where(scope.owns(CallRow.auth_id)))
        newest = (CallRow.created_at, CallRow.id)
        rows, total = await self._database.page(query, newest=newest, limit=limit, offset=offset)
        return [call_of(row) for row in rows], total

    @whole
    async def events(
        self, call_id: str, *, after: int = 0, types: Sequence[str] = ()
    ) -> list[StoredEvent]:
        """Return a call's events by arrival; check first that the client may see the call."""
        query = EVENTS_OF_TYPES if types else EVENTS
        values = {"call": call_id, "after": after, **({"types": list(types)} if types else {})}
        async with self._database.read() as connection:
            rows = (await connection.execute(query, values)).mappings().all()
        return [StoredEvent.model_validate(dict(row)) for row in rows]

    @whole
    async def newest_event(self) -> int:
        """Return the ``seq`` of the newest event of any call; 0 if there is none."""
        async with self._database.read() as connection:
            return await connection.scalar(select(func.max(EventRow.seq))) or 0

    @whole
    async def events_since(self, seq: int, among: Sequence[int]) -> list[tuple[int, str]]:
        """Return ``seq`` and call id of all events after ``seq``, and of those in ``among``."""
        newer = NEWER_OR_AMONG if among else NEWER
        values = {"after": seq, **({"among": list(among)} if among else {})}
        async with self._database.read() as connection:
            rows = (await connection.execute(newer, values)).all()
        return [(row.seq, row.call_id) for row in rows]

    @whole
    async def turns(self, call_id: str) -> list[Turn]:
        """Return the newest version of each turn, in the order in which they were spoken."""
        events = await self.events(call_id, types=["turn"])
        return in_spoken_order([item.data for item in events])

    @whole
    async def last_turns(self, call_ids: Sequence[str]) -> dict[str, Turn]:
        """Return the most recently reported turn of each call; calls without turns are left out."""
        newest = (
            select(func.max(EventRow.seq))
            .where(EventRow.call_id.in_(call_ids), EventRow.type == "turn")
            .group_by(EventRow.call_id)
        )
        query = select(EventRow.call_id, EventRow.data).where(EventRow.seq.in_(newest))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return {call_id: Turn.model_validate(data) for call_id, data in rows}

    @whole
    @whole
    async def find_live_call(self, room_name: str, participant_identity: str) -> str | None:
        """Return the id of this participant's unfinished call, for LiveKit's webhooks."""
        return await self._live_call(room_name, participant_identity)

    @whole
    async def unfinished_calls(self, *, created_before: datetime) -> list[Call]:
        query = (
            select(CallRow.__table__)
            .where(CallRow.ended_at.is_(None), CallRow.created_at < created_before)
            .order_by(CallRow.created_at)
        )
        async with self._database.read() as connection:
            return [call_of(row) for row in (await connection.execute(query)).mappings()]

    @whole
    async def rooms_of_ended(
        self, rooms: Sequence[str], *, created_after: datetime, ended_before: datetime
    ) -> list[str]:
        """Return those of ``rooms`` that such a call used; all must pass gateway.fields.names."""
        found: set[str] = set()
        async with self._database.read() as connection:
            for start in range(0, len(rooms), _NAMES_AT_ONCE):
                query = select(CallRow.room_name).where(
                    CallRow.room_name.in_(rooms[start : start + _NAMES_AT_ONCE]),
                    CallRow.created_at > created_after,
                    CallRow.ended_at < ended_before,
                )
                found.update(await connection.scalars(query.distinct()))
        return sorted(found)

    async def _live_call(self, room_name: str, participant_identity: str) -> str | None:
        query = select(CallRow.id).where(
            CallRow.room_name == room_name,
            CallRow.participant_identity == participant_identity,
            CallRow.ended_at.is_(None),
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar_one_or_none()
