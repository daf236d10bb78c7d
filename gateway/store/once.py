"""Idempotency keys: the request that runs under a key, and its stored response.

A running request holds a lease on its key and renews it. If the lease lapses, the request is
taken to have died with its gateway: the key then stands for a stored "outcome unknown", and the
request is never run again.

The call of such a request can still be found. ``Store.insert_call`` notes the call at the key in
the transaction that inserts the record, and inserts none if the lease was lost. So a call that its
key does not name was never dialled, even if a gateway was suspended and resumes later.
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

# Three renewals may fail before a running request is presumed dead.
LEASE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key whose request runs here; ``holder`` is unique to this run."""

    auth_id: str
    key: str
    holder: str


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The stored response of a key; ``status`` is None while its request runs.

    ``call_id``: the request's call, as soon as it has a record.
    """

    request_hash: str
    status: int | None
    body: str | None
    call_id: str | None


# The key of the request that is being served; tasks started for the request inherit it.
HELD: ContextVar[HeldKey | None] = ContextVar("held idempotency key", default=None)


class IdempotencyKeys:
    def __init__(self, database: Database, clock: Callable[[], datetime] = now) -> None:
        self._database = database
        self._clock = clock

    @whole
    async def begin(
        self, scope: Scope, key: str, request_hash: str, *, orphan: tuple[int, str]
    ) -> HeldKey | KeptAnswer:
        """Take a new key, or return the stored response of a taken one.

        ``orphan``: status and body of the response to store for a request whose lease lapsed.
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
                    # NULL: written by a release without leases.
                    or_(
                        IdempotencyRow.leased_until.is_(None), IdempotencyRow.leased_until <= moment
                    ),
                )
                .values(status=status, body=body)
            )
            kept = await _kept(connection, held.auth_id, key)
        # The key was released at this very moment; the client is told that it still runs.
        return kept[0] if kept else KeptAnswer(request_hash, None, None, None)

    @whole
    async def look(self, scope: Scope, key: str) -> KeptAnswer | None:
        """Return a key's stored response without writing; None if ``begin`` must decide."""
        async with self._database.read() as connection:
            kept = await _kept(connection, scope.auth_id or "", key)
        if kept is None:
            return None
        answer, leased_until = kept
        lapsed = leased_until is None or leased_until <= self._clock()
        return None if answer.status is None and lapsed else answer

    @whole
    async def renew(self, held: HeldKey) -> bool:
        """Renew the lease. False: it was lost, and the request was presumed dead."""
        async with self._database.write() as connection:
            query = _running(held).values(leased_until=self._clock() + LEASE)
            return (await connection.execute(query)).rowcount > 0

    @whole
    async def finish(self, held: HeldKey, status: int, body: str) -> None:
        """Store the response; it replaces the one stored if the request was presumed dead."""
        query = update(IdempotencyRow).where(*_of(held)).values(status=status, body=body)
        async with self._database.write() as connection:
            await connection.execute(query)

    @whole
    async def forget(self, held: HeldKey) -> None:
        """Release the key for reuse; the request had no effect."""
        async with self._database.write() as connection:
            await connection.execute(delete(IdempotencyRow).where(*_of(held)))


async def tie(connection: AsyncConnection, call_id: str) -> None:
    """Note the new call at the idempotency key of the current request, if it has one.

    Raises Unavailable if the request was presumed dead, which its client has been told.
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
