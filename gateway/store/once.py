"""Idempotency keys: whose request runs under a key, and what it was answered.

A running request holds a lease on its key and renews it. One whose lease lapsed died with its
gateway: the key then stands for a stored "outcome unknown", and the request is never run again.

The call of such a request is known all the same. ``Store.insert_call`` ties the record to the key
in the transaction that makes it, and makes none when the lease was lost: a call that is not named
by its key was never dialled, even when a gateway was frozen and comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Update, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from core.errors import Unavailable
from core.models import new_id, now
from gateway.store.database import Database, Scope, whole
from gateway.store.tables import IdempotencyRow

# Three renewals may fail before a running request is taken for dead.
LEASE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key whose request runs here; ``holder`` tells it from any other run."""

    auth_id: str
    key: str
    holder: str


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What a key stands for; ``status`` is None while its request runs.

    ``call_id``: the call that the request made, as soon as it has a record.
    """

    request_hash: str
    status: int | None
    body: str | None
    call_id: str | None


# The key of the request that is being served; every task begun for it sees it.
HELD: ContextVar[HeldKey | None] = ContextVar("held idempotency key", default=None)


class IdempotencyKeys:
    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    @whole
    async def begin(
        self, scope: Scope, key: str, request_hash: str, *, orphan: tuple[int, str]
    ) -> HeldKey | KeptAnswer:
        """Take a new key. Of one that is taken: what it stands for.

        ``orphan``: status and body of the answer to keep for a request that died.
        """
        held = HeldKey(scope.auth_id or "", key, new_id("req"))
        moment = self._clock()
        async with self._database.write() as connection:
            taken = await connection.execute(
                self._database.insert(IdempotencyRow)
                .values(
                    auth_id=held.auth_id,
                    key=key,
                    request_hash=request_hash,
                    created_at=moment,
                    holder=held.holder,
                    leased_until=moment + LEASE,
                )
                .on_conflict_do_nothing()
                .returning(IdempotencyRow.key)
            )
            if taken.scalar_one_or_none() is not None:
                return held
            status, body = orphan
            await connection.execute(
                update(IdempotencyRow)
                .where(
                    IdempotencyRow.auth_id == held.auth_id,
                    IdempotencyRow.key == key,
                    IdempotencyRow.status.is_(None),
                    # NULL: written before there were leases.
                    or_(
                        IdempotencyRow.leased_until.is_(None), IdempotencyRow.leased_until <= moment
                    ),
                )
                .values(status=status, body=body)
            )
            kept = await _kept(connection, held.auth_id, key)
        # Let go of in this very moment: for the caller, still running.
        return kept[0] if kept else KeptAnswer(request_hash, None, None, None)

    @whole
    async def look(self, scope: Scope, key: str) -> KeptAnswer | None:
        """What a key stands for, without writing; None: ``begin`` would decide now."""
        async with self._database.read() as connection:
            kept = await _kept(connection, scope.auth_id or "", key)
        if kept is None:
            return None
        answer, leased_until = kept
        lapsed = leased_until is None or leased_until <= self._clock()
        return None if answer.status is None and lapsed else answer

    @whole
    async def renew(self, held: HeldKey) -> bool:
        """Whether the key was still ours; if not, its request was taken for dead."""
        async with self._database.write() as connection:
            query = _running(held).values(leased_until=self._clock() + LEASE)
            return (await connection.execute(query)).rowcount > 0

    @whole
    async def finish(self, held: HeldKey, status: int, body: str) -> None:
        """Keep the answer; if the request was taken for dead meanwhile, this is known better."""
        query = update(IdempotencyRow).where(*_of(held)).values(status=status, body=body)
        async with self._database.write() as connection:
            await connection.execute(query)

    @whole
    async def forget(self, held: HeldKey) -> None:
        """The request had no effect: the key may be used again."""
        async with self._database.write() as connection:
            await connection.execute(delete(IdempotencyRow).where(*_of(held)))


async def tie(connection: AsyncConnection, call_id: str) -> None:
    """Note the new call at the key of the request that is being served, if it has one.

    Raises Unavailable when the request was taken for dead: its caller was told so.
    """
    if (held := HELD.get()) is None:
        return
    noted = await connection.execute(_running(held).values(call_id=call_id))
    if noted.rowcount == 0:
        raise Unavailable("The request took too long to begin", code="STORE_UNAVAILABLE")


def _of(held: HeldKey) -> tuple[ColumnElement[bool], ...]:
    return (
        IdempotencyRow.auth_id == held.auth_id,
        IdempotencyRow.key == held.key,
        IdempotencyRow.holder == held.holder,
    )


def _running(held: HeldKey) -> Update:
    return update(IdempotencyRow).where(*_of(held), IdempotencyRow.status.is_(None))


async def _kept(
    connection: AsyncConnection, auth_id: str, key: str
) -> tuple[KeptAnswer, datetime | None] | None:
    query = select(IdempotencyRow.__table__).where(
        IdempotencyRow.auth_id == auth_id, IdempotencyRow.key == key
    )
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    answer = KeptAnswer(row["request_hash"], row["status"], row["body"], row["call_id"])
    return answer, row["leased_until"]
