"""Jobs that copy recordings to a place that their owner named.

A gateway works on a job while it holds the job's lease; if the gateway is killed, another one goes
on after the recording up to which the job had come.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from pydantic import Field
from sqlalchemy import (
    ColumnElement,
    and_,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from core.models import Model, Timestamp, new_id, now
from core.recordings.config import Region
from core.shapes import rfc3339
from gateway.store.credentials import Vault
from gateway.store.database import Database, Scope, one_at_a_time, whole
from gateway.store.once import tie
from gateway.store.recordings.tables import ExportRow, RecordingPartRow, RecordingRow

LEASE = timedelta(seconds=30)
MAX_WAITING = 20
"""Of one owner's jobs that have not ended."""

ExportStatus = Literal["queued", "running", "completed", "failed"]

_TABLE: Any = ExportRow.__table__
_RECORDINGS: Any = RecordingRow.__table__


class TooManyExports(Exception):
    """MAX_WAITING of the owner's jobs have not ended."""


class Export(Model):
    id: str
    auth_id: str | None
    since: Timestamp | None
    until: Timestamp
    destination: str
    sealed: str | None = Field(None, repr=False)
    status: ExportStatus = "queued"
    failure: str | None = None
    total: int = 0
    done: int = 0
    failed: int = 0
    after_at: Timestamp | None = None
    after_id: str | None = None
    behind: dict[str, tuple[Timestamp | None, str | None]] = Field({}, repr=False)
    progressed_at: Timestamp | None = None
    created_at: Timestamp
    ended_at: Timestamp | None = None
    due_at: Timestamp | None = None


class ToExport(Model):
    """A recording, as a job needs it."""

    call_id: str
    region: Region | None
    key: str
    bytes: int
    sha256: str
    encrypted: bool
    stored_at: Timestamp


class Exports:
    """Every method is one transaction."""

    def __init__(
        self, database: Database, vault: Vault, clock: Callable[[], datetime] = now
    ) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock

    @whole
    async def add(self, job: Export, secret: dict[str, Any] | None) -> Export:
        """Store a new job, with the number of recordings; ``secret`` is sealed.

        Raises TooManyExports.
        """
        counted = select(func.count()).select_from(_RECORDINGS).where(*_wanted(job))
        waiting = (
            select(func.count())
            .select_from(_TABLE)
            .where(_TABLE.c.due_at.is_not(None), _TABLE.c.auth_id.is_not_distinct_from(job.auth_id))
        )
        sealed = None if secret is None else self._vault.seal(secret)
        async with self._database.write() as connection:
            await one_at_a_time(connection, f"exports of {job.auth_id}")
            if ((await connection.execute(waiting)).scalar_one()) >= MAX_WAITING:
                raise TooManyExports
            await tie(connection, job.id)
            total = (await connection.execute(counted)).scalar_one()
            values = {**job.model_dump(), "total": total, "sealed": sealed}
            row = await connection.execute(insert(_TABLE).values(**values).returning(*_TABLE.c))
            return _export(row.mappings().one())

    @whole
    async def find(self, scope: Scope, job_id: str) -> Export | None:
        query = select(_TABLE).where(_TABLE.c.id == job_id, scope.owns(_TABLE.c.auth_id))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else _export(row)

    def secret(self, job: Export) -> dict[str, Any] | None:
        """Return the destination's credentials. Raises Unreadable."""
        return None if job.sealed is None else self._vault.open(job.sealed)

    @whole
    async def claim(self) -> tuple[str, Export] | None:
        """Lease the job that is due longest; concurrent claims never get the same one.

        Only the first of each owner's jobs is free, so no owner has two workers. A job that is
        postponed makes way for the next.
        """
        moment = self._clock()
        other = _TABLE.alias()
        not_first = exists().where(
            other.c.due_at.is_not(None),
            other.c.auth_id.is_not_distinct_from(_TABLE.c.auth_id),
            or_(
                other.c.leased_until >= moment,
                tuple_(other.c.due_at, other.c.id) < tuple_(_TABLE.c.due_at, _TABLE.c.id),
            ),
        )
        free = (
            _TABLE.c.due_at <= moment,
            or_(_TABLE.c.leased_until.is_(None), _TABLE.c.leased_until < moment),
            ~not_first,
        )
        due = select(_TABLE.c.id).where(*free).order_by(_TABLE.c.due_at).limit(1)
        async with self._database.read() as connection:
            if (await connection.scalars(due)).one_or_none() is None:
                return None
        lease = new_id("step")
        async with self._database.write() as connection:
            job_id = (await connection.scalars(due.with_for_update(skip_locked=True))).one_or_none()
            if job_id is None:
                return None
            leased = (
                update(_TABLE)
                .where(_TABLE.c.id == job_id)
                .values(
                    lease=lease,
                    leased_until=self._clock() + LEASE,
                    status="running",
                    progressed_at=func.coalesce(
                        _TABLE.c.progressed_at, literal(moment, _TABLE.c.progressed_at.type)
                    ),
                )
                .returning(*_TABLE.c)
            )
            return lease, _export((await connection.execute(leased)).mappings().one())

    @whole
    async def following(
        self, job: Export, limit: int, away: Collection[Region | None] = ()
    ) -> Sequence[ToExport]:
        """Return the job's next recordings, oldest first, without those in stores that are away."""
        here = [_after(job, region) for region in (None, *get_args(Region)) if region not in away]
        query = (
            select(*(_RECORDINGS.c[name] for name in ToExport.model_fields))
            .where(*_wanted(job), or_(false(), *here))
            .order_by(_RECORDINGS.c.stored_at, _RECORDINGS.c.call_id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [ToExport.model_validate(dict(row)) for row in rows]

    @whole
    async def more_of(self, recording: ToExport) -> Sequence[ToExport]:
        """Return the further objects of a recording (gateway.store.recordings.tables)."""
        parts = RecordingPartRow.__table__
        query = (
            select(*(parts.c[name] for name in ToExport.model_fields))
            .where(parts.c.call_id == recording.call_id)
            .order_by(parts.c.key)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [ToExport.model_validate(dict(row)) for row in rows]

    @whole
    async def renew(self, job: Export, lease: str) -> Export | None:
        return await self._change(job, lease, leased_until=self._clock() + LEASE)

    @whole
    async def advance(
        self, job: Export, lease: str, recording: ToExport, *, copied: bool
    ) -> Export | None:
        """Store that the job has come past a recording. None: the lease was lost."""
        counted: dict[str, Any] = (
            {"done": _TABLE.c.done + 1} if copied else {"failed": _TABLE.c.failed + 1}
        )
        return await self._change(
            job,
            lease,
            **_come_past(job, recording),
            progressed_at=self._clock(),
            leased_until=self._clock() + LEASE,
            failure=None,
            **counted,
        )

    @whole
    async def leave(self, job: Export, lease: str, region: Region | None) -> Export | None:
        """Let the job come past a region's recordings, and return to them later."""
        left = {_name(region): (job.after_at, job.after_id)}
        return await self._change(job, lease, behind=_json({**left, **job.behind}))

    @whole
    async def postpone(
        self, job: Export, lease: str, failure: str, due_at: datetime
    ) -> Export | None:
        """Give the lease up; a gateway goes on at ``due_at``."""
        return await self._change(
            job, lease, failure=failure, due_at=due_at, lease=None, leased_until=None
        )

    @whole
    async def end(self, job: Export, lease: str, failure: str | None) -> Export | None:
        """End the job, and forget the destination's credentials."""
        return await self._change(
            job,
            lease,
            status="completed" if failure is None else "failed",
            failure=failure,
            sealed=None,
            ended_at=self._clock(),
            due_at=None,
            lease=None,
            leased_until=None,
        )

    @whole
    async def reseal(self) -> int:
        """Encrypt all credentials with the first key, and return their number.

        Raises Unreadable, and then nothing is changed.
        """
        query = select(_TABLE.c.id, _TABLE.c.sealed).where(_TABLE.c.sealed.is_not(None))
        async with self._database.write() as connection:
            rows = (await connection.execute(query)).all()
            for job_id, sealed in rows:
                await connection.execute(
                    update(_TABLE)
                    .where(_TABLE.c.id == job_id)
                    .values(sealed=self._vault.reseal(sealed))
                )
        return len(rows)

    async def _change(self, job: Export, lease: str, /, **values: Any) -> Export | None:
        held = _TABLE.c.id == job.id, _TABLE.c.lease == lease
        changed = update(_TABLE).where(*held).values(**values).returning(*_TABLE.c)
        async with self._database.write() as connection:
            row = (await connection.execute(changed)).mappings().one_or_none()
        return None if row is None else _export(row)


def _wanted(job: Export) -> list[ColumnElement[bool]]:
    """Return the conditions on the recordings of a job: its owner's, stored in its time."""
    wanted = [
        Scope(job.auth_id).owns(_RECORDINGS.c.auth_id),
        _RECORDINGS.c.deleted_at.is_(None),
        _RECORDINGS.c.stored_at < job.until,
    ]
    return wanted if job.since is None else [*wanted, _RECORDINGS.c.stored_at >= job.since]


def _after(job: Export, region: Region | None) -> ColumnElement[bool]:
    """Return the condition on the recordings in a region to which the job has not come."""
    at, call_id = job.behind.get(_name(region), (job.after_at, job.after_id))
    there: ColumnElement[bool] = _RECORDINGS.c.region.is_not_distinct_from(region)
    if at is None:
        return there
    same = and_(_RECORDINGS.c.stored_at == at, _RECORDINGS.c.call_id > call_id)
    return and_(there, or_(_RECORDINGS.c.stored_at > at, same))


def _come_past(job: Export, recording: ToExport) -> dict[str, Any]:
    name = _name(recording.region)
    if name not in job.behind:
        return {"after_at": recording.stored_at, "after_id": recording.call_id}
    come = {name: (recording.stored_at, recording.call_id)}
    return {"behind": _json({**job.behind, **come})}


def _name(region: Region | None) -> str:
    return region or ""


def _json(behind: dict[str, tuple[datetime | None, str | None]]) -> dict[str, Any]:
    return {name: [at and rfc3339(at), call_id] for name, (at, call_id) in behind.items()}


def _export(row: Any) -> Export:
    return Export.model_validate({name: row[name] for name in Export.model_fields})
