"""The database: SQLite for one machine, PostgreSQL for a fleet, the same code on both.

The gateway is the only writer. Every read that serves a caller takes a ``Scope``,
so a query without a tenant cannot be written by accident. Failures of the
database itself come out as ``Unavailable`` (503); nothing else is translated.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Select, delete, event, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from core import migrations
from core.errors import Unavailable
from core.events import CallState, Source, fold
from core.models import (
    Agent,
    Call,
    CallEvent,
    Direction,
    Heartbeat,
    Status,
    StoredEvent,
    Turn,
    now,
)
from core.tables import CallRow, EventRow, IdempotencyRow, RoomClaimRow, WorkerRow

# A worker beats every 2 s; one that missed three is not offered calls.
WORKER_STALE = timedelta(seconds=7)
# Longer than any create_room may take, so that a fresh claim is never stolen.
CLAIM_STALE = timedelta(seconds=15)
IDEMPOTENCY_TTL = timedelta(hours=24)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_STATE_FIELDS = tuple(field.name for field in fields(CallState))


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose rows a query may see; ``None`` is the unscoped operator, who sees all."""

    auth_id: str | None

    def narrow(self, query: Select[Any]) -> Select[Any]:
        return query if self.auth_id is None else query.where(CallRow.auth_id == self.auth_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCall:
    id: str
    auth_id: str | None
    direction: Direction
    room_name: str
    participant_identity: str
    from_number: str | None
    to_number: str | None
    max_duration_ms: int
    agent: Agent | None = None
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CallFilter:
    statuses: Sequence[Status] = ()
    direction: Direction | None = None
    agent_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What an Idempotency-Key stands for; ``status`` is None while the first is in flight."""

    request_hash: str
    status: int | None
    body: str | None


class LiveIdentity(Exception):
    """An unfinished call holds this identity in this room."""

    def __init__(self, call_id: str) -> None:
        super().__init__(call_id)
        self.call_id = call_id


def _whole(
    operation: Callable[Concatenate[Store, _P], Awaitable[_T]],
) -> Callable[Concatenate[Store, _P], Coroutine[Any, Any, _T]]:
    """Let an operation finish even when its caller is cancelled, who then waits for it.

    A transaction cut off in the middle would keep SQLite's write lock, and its
    connection, until somebody notices.
    """

    async def finished(self: Store, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        task = asyncio.ensure_future(operation(self, *args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise

    functools.update_wrapper(finished, operation)
    return finished


class Store:
    """Open with ``Store.open``; every method is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._postgres = engine.dialect.name == "postgresql"
        # SQLite has one writer at a time; queueing here is fairer than its busy loop.
        self._write_lock = asyncio.Lock()

    @classmethod
    async def open(cls, url: str) -> Store:
        """Connect and bring the schema up to date. Raises Unavailable, ValueError (bad URL)."""
        store = cls(_engine(url))
        try:
            async with store._write() as connection:
                await connection.run_sync(migrations.upgrade)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        await self._engine.dispose()

    async def ping(self) -> None:
        async with self._read() as connection:
            await connection.execute(select(1))

    # --- calls and their timeline

    @_whole
    async def insert_call(self, new: NewCall, first: CallEvent) -> Call:
        """Keep a new call with its first event. Raises LiveIdentity."""
        row = {
            "id": new.id,
            "auth_id": new.auth_id,
            "agent_id": new.agent.id if new.agent else None,
            "agent_version": new.agent.version if new.agent else None,
            "agent": new.agent.wire() if new.agent else None,
            "from_number": new.from_number,
            "to_number": new.to_number,
            "direction": new.direction,
            "type": "web" if new.direction == "web" else "pstn",
            "max_duration_ms": new.max_duration_ms,
            "room_name": new.room_name,
            "participant_identity": new.participant_identity,
            "meta": new.metadata,
            "created_at": first.at,
            **asdict(CallState()),
        }
        try:
            async with self._write() as connection:
                await connection.execute(insert(CallRow).values(**row))
                await connection.execute(
                    insert(EventRow).values(**_event_row(new.id, new.auth_id, first, "gateway"))
                )
        except IntegrityError:
            raise LiveIdentity(
                await self._live_call(new.room_name, new.participant_identity) or ""
            ) from None
        row["metadata"] = row.pop("meta")
        row["disconnection_reason"] = row.pop("reason")
        return Call.model_validate({name: row.get(name) for name in Call.model_fields})

    @_whole
    async def append(
        self, call_id: str, events: Sequence[CallEvent], source: Source
    ) -> list[StoredEvent] | None:
        """Append events not seen before and fold them into the call; None: no such call."""
        if not events:
            return []
        async with self._write() as connection:
            query = select(CallRow.__table__).where(CallRow.id == call_id)
            row = (await connection.execute(query.with_for_update())).mappings().one_or_none()
            if row is None:
                return None
            stored: list[StoredEvent] = []
            state = before = CallState(**{name: row[name] for name in _STATE_FIELDS})
            for item in events:
                statement = (
                    self._insert(EventRow)
                    .values(**_event_row(call_id, row["auth_id"], item, source))
                    .on_conflict_do_nothing(index_elements=["id"])
                    .returning(EventRow.seq)
                )
                seq = (await connection.execute(statement)).scalar_one_or_none()
                if seq is None:
                    continue
                state = fold(state, item, source)
                stored.append(
                    StoredEvent(**item.model_dump(), call_id=call_id, seq=seq, source=source)
                )
            if state != before:
                await connection.execute(
                    update(CallRow).where(CallRow.id == call_id).values(**asdict(state))
                )
            return stored

    @_whole
    async def call(self, scope: Scope, call_id: str) -> Call | None:
        async with self._read() as connection:
            query = scope.narrow(select(CallRow.__table__).where(CallRow.id == call_id))
            row = (await connection.execute(query)).mappings().one_or_none()
            return None if row is None else _call(row)

    @_whole
    async def calls(
        self, scope: Scope, where: CallFilter, *, limit: int, offset: int
    ) -> tuple[list[Call], int]:
        """A page, newest first, and how many there are in all."""
        query = scope.narrow(select(CallRow.__table__))
        if where.statuses:
            query = query.where(CallRow.status.in_(where.statuses))
        if where.direction:
            query = query.where(CallRow.direction == where.direction)
        if where.agent_id:
            query = query.where(CallRow.agent_id == where.agent_id)
        if where.since:
            query = query.where(CallRow.created_at >= where.since)
        if where.until:
            query = query.where(CallRow.created_at < where.until)
        page = query.order_by(CallRow.created_at.desc(), CallRow.id.desc())
        async with self._read() as connection:
            total = await connection.scalar(select(func.count()).select_from(query.subquery()))
            rows = (await connection.execute(page.limit(limit).offset(offset))).mappings().all()
        return [_call(row) for row in rows], total or 0

    @_whole
    async def events(
        self, call_id: str, *, after: int = 0, types: Sequence[str] = ()
    ) -> list[StoredEvent]:
        """A call's events by arrival; the caller has checked whose call it is."""
        query = select(EventRow.__table__).where(EventRow.call_id == call_id, EventRow.seq > after)
        if types:
            query = query.where(EventRow.type.in_(types))
        async with self._read() as connection:
            rows = (await connection.execute(query.order_by(EventRow.seq))).mappings().all()
        return [StoredEvent.model_validate(dict(row)) for row in rows]

    @_whole
    async def turns(self, call_id: str) -> list[Turn]:
        """The conversation in the order it was held; of a turn told twice, the newer telling."""
        turns: dict[str, Turn] = {}
        for item in await self.events(call_id, types=["turn"]):
            turn = Turn.model_validate(item.data)
            turns[turn.id] = turn
        return sorted(turns.values(), key=_spoken_at)

    @_whole
    async def job(self, call_id: str) -> tuple[Call, Agent | None, int] | None:
        """What the call's worker needs: the record, its pinned agent, its limit in ms."""
        async with self._read() as connection:
            query = select(CallRow.__table__).where(CallRow.id == call_id)
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            return None
        agent = Agent.model_validate(row["agent"]) if row["agent"] else None
        return _call(row), agent, row["max_duration_ms"]

    @_whole
    async def find_live_call(self, room_name: str, participant_identity: str) -> str | None:
        """The unfinished call of this participant, for LiveKit's webhooks."""
        return await self._live_call(room_name, participant_identity)

    @_whole
    async def find_call_of_participant(self, participant_id: str) -> str | None:
        """The call whose SIP participant has this ``PA_…`` id, finished or not."""
        query = select(CallRow.id).where(CallRow.participant_id == participant_id)
        async with self._read() as connection:
            return (await connection.execute(query.limit(1))).scalar_one_or_none()

    @_whole
    async def unfinished_calls(self, *, created_before: datetime) -> list[Call]:
        query = (
            select(CallRow.__table__)
            .where(CallRow.ended_at.is_(None), CallRow.created_at < created_before)
            .order_by(CallRow.created_at)
        )
        async with self._read() as connection:
            return [_call(row) for row in (await connection.execute(query)).mappings()]

    async def _live_call(self, room_name: str, participant_identity: str) -> str | None:
        query = select(CallRow.id).where(
            CallRow.room_name == room_name,
            CallRow.participant_identity == participant_identity,
            CallRow.ended_at.is_(None),
        )
        async with self._read() as connection:
            return (await connection.execute(query)).scalar_one_or_none()

    # --- who may create a room

    @_whole
    async def claim_room(self, room_name: str, auth_id: str | None) -> bool:
        """Take or renew the right to create this room; False: another tenant has it.

        The caller has just seen that LiveKit has no such room. Of any number of
        concurrent claims of two tenants, one tenant's succeed.
        """
        moment = now()
        async with self._write() as connection:
            # One statement, so both databases settle the race themselves.
            statement = (
                self._insert(RoomClaimRow)
                .values(room_name=room_name, auth_id=auth_id, claimed_at=moment)
                .on_conflict_do_update(
                    index_elements=["room_name"],
                    set_={"auth_id": auth_id, "claimed_at": moment},
                    where=RoomClaimRow.auth_id.is_not_distinct_from(auth_id)
                    | (RoomClaimRow.claimed_at < moment - CLAIM_STALE),
                )
                .returning(RoomClaimRow.room_name)
            )
            return (await connection.execute(statement)).scalar_one_or_none() is not None

    @_whole
    async def sweep(self) -> None:
        """Drop what only mattered for a while: old claims, keys and workers."""
        moment = now()
        async with self._write() as connection:
            for stale in (
                RoomClaimRow.claimed_at < moment - CLAIM_STALE,
                IdempotencyRow.created_at < moment - IDEMPOTENCY_TTL,
                WorkerRow.seen_at < moment - timedelta(hours=1),
            ):
                await connection.execute(delete(stale.left.table).where(stale))

    # --- workers

    @_whole
    async def heartbeat(self, beat: Heartbeat) -> None:
        values = {**beat.model_dump(), "seen_at": now()}
        async with self._write() as connection:
            await connection.execute(
                self._insert(WorkerRow)
                .values(**values)
                .on_conflict_do_update(index_elements=["worker_id"], set_=values)
            )

    @_whole
    async def workers(self) -> list[Heartbeat]:
        """Those that beat recently."""
        query = select(WorkerRow.__table__).where(WorkerRow.seen_at >= now() - WORKER_STALE)
        async with self._read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [Heartbeat.model_validate(dict(row), extra="ignore") for row in rows]

    # --- idempotency

    @_whole
    async def begin_once(self, scope: Scope, key: str, request_hash: str) -> KeptAnswer | None:
        """None: the key is new and now ours. Otherwise what it already stands for."""
        owner = scope.auth_id or ""
        async with self._write() as connection:
            taken = await connection.execute(
                self._insert(IdempotencyRow)
                .values(auth_id=owner, key=key, request_hash=request_hash, created_at=now())
                .on_conflict_do_nothing()
                .returning(IdempotencyRow.key)
            )
            if taken.scalar_one_or_none() is not None:
                return None
            row = (
                await connection.execute(
                    select(IdempotencyRow.__table__).where(
                        IdempotencyRow.auth_id == owner, IdempotencyRow.key == key
                    )
                )
            ).mappings()
            kept = row.one_or_none()
        if kept is None:  # let go of in this very moment: for the caller, still in flight
            return KeptAnswer(request_hash, None, None)
        return KeptAnswer(kept["request_hash"], kept["status"], kept["body"])

    @_whole
    async def finish_once(self, scope: Scope, key: str, status: int, body: str) -> None:
        async with self._write() as connection:
            await connection.execute(
                update(IdempotencyRow)
                .where(IdempotencyRow.auth_id == (scope.auth_id or ""), IdempotencyRow.key == key)
                .values(status=status, body=body)
            )

    @_whole
    async def forget_once(self, scope: Scope, key: str) -> None:
        """The request had no effect: the key may be used again."""
        async with self._write() as connection:
            await connection.execute(
                delete(IdempotencyRow).where(
                    IdempotencyRow.auth_id == (scope.auth_id or ""), IdempotencyRow.key == key
                )
            )

    # --- plumbing

    def _insert(self, table: type[Any]) -> Any:
        return postgresql.insert(table) if self._postgres else sqlite.insert(table)

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        with _translated():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        with _translated():
            if self._postgres:
                async with self._engine.begin() as connection:
                    yield connection
                return
            async with self._write_lock, self._engine.connect() as connection:
                # Taking SQLite's write lock first: a transaction that starts by
                # reading could otherwise fail when it begins to write.
                await connection.execution_options(sqlite_begin="BEGIN IMMEDIATE")
                async with connection.begin():
                    yield connection


class _translated:
    """Turns a failing database into Unavailable; a plain context manager, safe in async code."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, IntegrityError):
            return
        if isinstance(error, DBAPIError | PoolTimeout | OSError):
            raise Unavailable(
                "The database is unavailable", code="STORE_UNAVAILABLE", retry_after_s=2
            ) from error


def _engine(url: str) -> AsyncEngine:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Their messages may quote the password.
        raise ValueError("DATABASE_URL is not the address of a database") from None
    match parsed.get_backend_name():
        case "sqlite":
            path = parsed.database
            if path and path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            engine = create_async_engine(
                parsed.set(drivername="sqlite+aiosqlite"), connect_args={"timeout": 5}
            )
            event.listen(engine.sync_engine, "connect", _sqlite_connected)
            event.listen(engine.sync_engine, "begin", _sqlite_begin)
            return engine
        case "postgresql" | "postgres":
            return create_async_engine(
                parsed.set(drivername="postgresql+asyncpg"),
                pool_size=10,
                max_overflow=10,
                pool_timeout=5,
                pool_pre_ping=True,
                connect_args={"timeout": 5, "command_timeout": 10},
            )
    raise ValueError("DATABASE_URL must be sqlite:///… or postgresql://…")


def _sqlite_connected(connection: Any, _record: object) -> None:
    # Leave transactions to us (the driver would begin them late), keep readers and
    # the writer apart (WAL), and let a power cut lose the last moment, never the file.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Any) -> None:
    connection.execute(text(connection.get_execution_options().get("sqlite_begin", "BEGIN")))


def _event_row(
    call_id: str, auth_id: str | None, item: CallEvent, source: Source
) -> dict[str, Any]:
    return {
        "id": item.id,
        "auth_id": auth_id,
        "call_id": call_id,
        "type": item.type,
        "source": source,
        "at": item.at,
        "data": item.data,
    }


def _call(row: Any) -> Call:
    values = {name: row[name] for name in Call.model_fields if name in row}
    values["disconnection_reason"] = row["reason"]
    return Call.model_validate(values)


def _spoken_at(turn: Turn) -> tuple[int, datetime]:
    offsets = [turn.start_ms, turn.response_start_ms]
    known = [offset for offset in offsets if offset is not None]
    return (min(known) if known else 0, turn.created_at)
