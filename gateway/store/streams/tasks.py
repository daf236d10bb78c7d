"""Tasks: calls that Twilio places for an agent, repeated until somebody answers.

A task has at most one attempt under way, and each attempt is a call of its own. ``due_at`` says
when a gateway has to look at the task; a gateway takes a step with a task only while it holds the
lease on it. If the gateway is killed, another one goes on when the lease expires. An attempt is
stored before Twilio is asked for the call: so the next gateway knows that there may be one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from pydantic import Field
from sqlalchemy import ColumnElement, exists, insert, or_, select, update

from core.models import Model, Timestamp, new_id, now
from gateway.store.database import Database, Scope, whole
from gateway.store.once import tie
from gateway.store.streams.tables import SessionRow, TaskRow
from gateway.store.tables import CallRow

LEASE = timedelta(seconds=15)
"""Longer than a step takes (STEP_S), so that it need not be renewed."""
STEP_S = 12.0

TaskStatus = Literal["queued", "in-progress", "completed", "failed", "canceled"]
RetryOn = Literal["busy", "no-answer", "failed"]
UNFINISHED: tuple[TaskStatus, ...] = ("queued", "in-progress")
STATUSES: tuple[TaskStatus, ...] = get_args(TaskStatus)

_TABLE: Any = TaskRow.__table__


class Retry(Model):
    """When a call that nobody answered is repeated."""

    max_attempts: int = 1
    delay_seconds: int = 300
    on: list[RetryOn] = Field(default=["busy", "no-answer"])


class Wanted(Model):
    """The part of a task's request that its calls need, and queries do not."""

    instance_id: str | None = None
    goal: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    variables: dict[str, str | None] = Field(default_factory=dict)
    record: bool = False
    retry: Retry = Field(default_factory=Retry)


class Task(Model):
    id: str
    auth_id: str | None
    agent_id: str
    phone_number_id: str
    credential_id: str
    from_number: str
    to_number: str
    wanted: Wanted
    created_at: Timestamp
    until: Timestamp
    status: TaskStatus = "queued"
    failure: str | None = None
    """Why the task failed, or what it waits for."""
    attempts: int = 0
    calls: list[str] = Field(default_factory=list)
    call_id: str | None = None
    """The attempt under way; None: there is none. The fields up to ``due_at`` are about it."""
    asked_at: Timestamp | None = None
    call_sid: str | None = None
    """Twilio's id of the call; None: not known, or Twilio has no such call."""
    sequence: int = -1
    call_status: str | None = None
    due_at: Timestamp | None = None
    ended_at: Timestamp | None = None

    @property
    def finished(self) -> bool:
        return self.status not in UNFINISHED


class TaskStore:
    """Every method is one transaction."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    # --- for the API

    @whole
    async def add(self, task: Task) -> None:
        """Store a new task. Raises Unavailable (gateway.store.once.tie)."""
        values = {**task.model_dump(exclude={"wanted"}), "wanted": task.wanted.wire()}
        async with self._database.write() as connection:
            await tie(connection, task.id)
            await connection.execute(insert(TaskRow).values(**values))

    @whole
    async def find(self, scope: Scope, task_id: str) -> Task | None:
        query = select(_TABLE).where(_TABLE.c.id == task_id, scope.owns(_TABLE.c.auth_id))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else _task(row)

    @whole
    async def page(
        self, scope: Scope, agent_id: str, status: TaskStatus | None, *, limit: int, offset: int
    ) -> tuple[list[Task], int]:
        """Return a page of the agent's tasks, newest first, and the total; ``status`` filters."""
        query = select(_TABLE).where(_TABLE.c.agent_id == agent_id, scope.owns(_TABLE.c.auth_id))
        if status is not None:
            query = query.where(_TABLE.c.status == status)
        newest = (_TABLE.c.created_at, _TABLE.c.id)
        rows, total = await self._database.page(query, newest=newest, limit=limit, offset=offset)
        return [_task(row) for row in rows], total

    @whole
    async def cancel(self, task_id: str) -> Task | None:
        """Cancel an unfinished task; its runner still hangs up a call. None: it is finished."""
        moment = self._clock()
        return await self._change(
            (_TABLE.c.id == task_id, _TABLE.c.status.in_(UNFINISHED)),
            {"status": "canceled", "failure": None, "ended_at": moment, "due_at": moment},
        )

    # --- for the runner: every step needs the lease that ``claim`` returned

    @whole
    async def claim(self, limit: int) -> tuple[str, list[Task]]:
        """Lease up to ``limit`` tasks that are due; return the lease and the tasks.

        A task is due at its time, and when the call of its attempt has ended. Concurrent claims
        never get the same task.
        """
        moment = self._clock()
        over = exists().where(CallRow.id == _TABLE.c.call_id, CallRow.ended_at.is_not(None))
        free = (
            _TABLE.c.due_at.is_not(None),
            or_(_TABLE.c.leased_until.is_(None), _TABLE.c.leased_until < moment),
        )
        due = (
            select(_TABLE.c.id)
            .where(*free, or_(_TABLE.c.due_at <= moment, over))
            .order_by(_TABLE.c.due_at)
            .limit(limit)
        )
        async with self._database.read() as connection:
            found = (await connection.scalars(due)).all()
        if not found:
            return "", []
        lease = new_id("step")
        async with self._database.write() as connection:
            query = select(_TABLE.c.id).where(_TABLE.c.id.in_(found), *free)
            ids = (await connection.scalars(query.with_for_update(skip_locked=True))).all()
            leased = (
                update(_TABLE)
                .where(_TABLE.c.id.in_(ids))
                .values(lease=lease, leased_until=self._clock() + LEASE)
                .returning(*_TABLE.c)
            )
            rows = (await connection.execute(leased)).mappings().all()
        return lease, [_task(row) for row in rows]

    @whole
    async def begin(self, task: Task, lease: str, call_id: str) -> Task | None:
        """Store that an attempt begins. None: the lease was lost, or the task was canceled."""
        return await self._change(
            (*_leased(task, lease), _TABLE.c.status == "queued", _TABLE.c.call_id.is_(None)),
            {
                "status": "in-progress",
                "failure": None,
                "attempts": task.attempts + 1,
                "calls": [*task.calls, call_id],
                "call_id": call_id,
                "asked_at": self._clock(),
                "call_sid": None,
                "sequence": -1,
                "call_status": None,
            },
        )

    @whole
    async def keep(self, task: Task, lease: str, /, **values: Any) -> Task | None:
        """End the step with these values, and give the lease up. None: the lease was lost.

        A canceled task stays canceled, whatever the values say. With ``leased_until``, nobody
        takes the task up before, not even when its call ends.
        """
        values = {"lease": None, "leased_until": None, **values}
        status = values.get("status")
        if status is None:
            return await self._change(_leased(task, lease), values)
        kept = await self._change((*_leased(task, lease), _TABLE.c.status.in_(UNFINISHED)), values)
        # Canceled meanwhile: look at it again at once.
        free = {"lease": None, "leased_until": None}
        return kept or await self._change(_leased(task, lease), free)

    @whole
    async def known(self, call_sids: Sequence[str]) -> set[str]:
        """Return those ids of Twilio's that belong to the attempts under way, or to sessions."""
        found: set[str] = set()
        async with self._database.read() as connection:
            for column in (TaskRow.call_sid, SessionRow.call_sid):
                found.update(await connection.scalars(select(column).where(column.in_(call_sids))))
        return found

    # --- for Twilio's answers and callbacks, which need no lease

    @whole
    async def learn(
        self, task_id: str, call_id: str, call_sid: str, *, sequence: int = -1, status: str = ""
    ) -> Task | None:
        """Store what is known of the attempt's call. None: it is old, or about another call.

        ``sequence`` -1: a fact without a number, which only tells the call's id.
        """
        newer = (_TABLE.c.sequence < sequence,) if sequence >= 0 else ()
        values: dict[str, Any] = {"call_sid": call_sid}
        if sequence >= 0:
            values["sequence"] = sequence
        if status:
            values["call_status"] = status
        return await self._change(
            (
                _TABLE.c.id == task_id,
                _TABLE.c.call_id == call_id,
                or_(_TABLE.c.call_sid.is_(None), _TABLE.c.call_sid == call_sid),
                *newer,
            ),
            values,
        )

    async def _change(
        self, where: tuple[ColumnElement[bool], ...], values: dict[str, Any]
    ) -> Task | None:
        changed = update(_TABLE).where(*where).values(**values).returning(*_TABLE.c)
        async with self._database.write() as connection:
            row = (await connection.execute(changed)).mappings().one_or_none()
        return None if row is None else _task(row)


def _leased(task: Task, lease: str) -> tuple[ColumnElement[bool], ...]:
    return (_TABLE.c.id == task.id, _TABLE.c.lease == lease)


def _task(row: Any) -> Task:
    return Task.model_validate(dict(row), extra="ignore")
