"""The stored recordings of calls. See gateway.recordings for what is done with the objects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, and_, insert, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from core.models import CallEvent, Model, now
from core.recordings.config import Format, Region
from gateway.store.call_rows import EVENTS_TABLE, event_row
from gateway.store.database import Database, Scope, whole
from gateway.store.recordings.tables import RecordingPartRow, RecordingRow

Deleter = Literal["api", "retention"]


class StoredPart(Model):
    """A further object of a recording, on the call's clock as all of them."""

    region: Region | None
    key: str
    format: Format
    bytes: int
    sha256: str
    duration_ms: int
    encrypted: bool
    stored_at: datetime


class StoredRecording(Model):
    """A call's recording. ``key`` names its first object in the store of ``region``."""

    call_id: str
    auth_id: str | None
    region: Region | None
    key: str
    format: Format
    bytes: int
    sha256: str
    duration_ms: int
    encrypted: bool
    stored_at: datetime
    expires_at: datetime | None
    deleted_at: datetime | None = None
    more: tuple[StoredPart, ...] = ()
    """The objects of the call's other agents."""

    @property
    def parts(self) -> Sequence[StoredRecording]:
        """Return each object as a recording of its own."""
        first = self.model_copy(update={"more": ()})
        return [first, *(first.model_copy(update=dict(part)) for part in self.more)]

    @property
    def digest(self) -> str:
        """Return what identifies the content, in hexadecimal."""
        if not self.more:
            return self.sha256
        digests = " ".join(sorted(part.sha256 for part in self.parts))
        return hashlib.sha256(digests.encode()).hexdigest()

    def row(self) -> dict[str, Any]:
        return self.model_dump(exclude={"more"})


class Recordings:
    """Every method is one transaction."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    @whole
    async def add(self, new: StoredRecording) -> StoredRecording:
        """Store an object of the call, unless it is stored. Return the call's recording."""
        added = self._database.insert(RecordingRow).values(new.row())
        async with self._database.write() as connection:
            await connection.execute(added.on_conflict_do_nothing(index_elements=["call_id"]))
            row = (await connection.execute(_of(new.call_id))).mappings().one()
            if row["key"] != new.key and row["deleted_at"] is None:
                part = StoredPart.model_validate(new.model_dump()).model_dump()
                another = self._database.insert(RecordingPartRow).values(
                    call_id=new.call_id, **part
                )
                await connection.execute(
                    another.on_conflict_do_nothing(index_elements=["call_id", "key"])
                )
            return await _whole(connection, row)

    @whole
    async def find(self, scope: Scope, call_id: str) -> StoredRecording | None:
        """Return the call's recording, also a deleted one."""
        async with self._database.read() as connection:
            query = _of(call_id).where(scope.owns(RecordingRow.auth_id))
            row = (await connection.execute(query)).mappings().one_or_none()
            return None if row is None else await _whole(connection, row)

    @whole
    async def parts_of(self, call_id: str) -> Sequence[StoredPart]:
        """Return the further objects of the call's recording."""
        async with self._database.read() as connection:
            return await _parts(connection, call_id)

    @whole
    async def available(self, call_ids: Sequence[str]) -> set[str]:
        """Return those of the calls that have a recording which can be heard."""
        query = select(RecordingRow.call_id).where(
            RecordingRow.call_id.in_(call_ids), *self._available()
        )
        async with self._database.read() as connection:
            return set(await connection.scalars(query))

    @whole
    async def due(
        self,
        *,
        limit: int,
        after: StoredRecording | None = None,
        without: Collection[Region | None] = (),
    ) -> Sequence[StoredRecording]:
        """Return recordings whose time is over, longest first, but for those regions.

        ``after``: the last one of the batch before.
        """
        query = (
            select(RecordingRow.__table__)
            .where(RecordingRow.expires_at <= self._clock(), RecordingRow.deleted_at.is_(None))
            .order_by(RecordingRow.expires_at, RecordingRow.call_id)
            .limit(limit)
        )
        if after is not None:
            place = tuple_(RecordingRow.expires_at, RecordingRow.call_id)
            query = query.where(place > (after.expires_at, after.call_id))
        if None in without:
            query = query.where(RecordingRow.region.is_not(None))
        if named := [region for region in without if region is not None]:
            outside = RecordingRow.region.is_(None), RecordingRow.region.not_in(named)
            query = query.where(or_(*outside))
        return await self._all(query)

    @whole
    async def deleted(self, recording: StoredRecording, by: Deleter) -> bool:
        """Record that the object is deleted, here and on the timeline.

        A recording that is not stored yet gets its row. False: it was recorded, or another content
        has been stored in between.
        """
        event = CallEvent(type="recording.deleted", at=self._clock(), data={"by": by})
        values = {**recording.row(), "deleted_at": event.at}
        marked = (
            self._database.insert(RecordingRow)
            .values(values)
            .on_conflict_do_update(
                index_elements=["call_id"],
                set_={"deleted_at": event.at},
                where=and_(
                    RecordingRow.deleted_at.is_(None), RecordingRow.sha256 == recording.sha256
                ),
            )
        )
        async with self._database.write() as connection:
            marking = await connection.execute(marked.returning(RecordingRow.call_id))
            if marking.scalar_one_or_none() is None:
                return False
            row = event_row(recording.call_id, recording.auth_id, event, "gateway")
            # Listeners find it as they find other gateways' events (gateway.calls.timeline).
            await connection.execute(insert(EVENTS_TABLE), row)
        return True

    def _available(self) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        kept = or_(RecordingRow.expires_at.is_(None), RecordingRow.expires_at > self._clock())
        return RecordingRow.deleted_at.is_(None), kept

    async def _all(self, query: Select[Any]) -> Sequence[StoredRecording]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [StoredRecording.model_validate(dict(row)) for row in rows]


async def _whole(connection: AsyncConnection, row: Any) -> StoredRecording:
    recording = StoredRecording.model_validate(dict(row))
    return recording.model_copy(update={"more": await _parts(connection, recording.call_id)})


async def _parts(connection: AsyncConnection, call_id: str) -> tuple[StoredPart, ...]:
    query = (
        select(RecordingPartRow.__table__)
        .where(RecordingPartRow.call_id == call_id)
        .order_by(RecordingPartRow.key)
    )
    rows = (await connection.execute(query)).mappings().all()
    return tuple(StoredPart.model_validate(dict(row)) for row in rows)


def _of(call_id: str) -> Select[Any]:
    return select(RecordingRow.__table__).where(RecordingRow.call_id == call_id)
