"""Phone numbers: their tenant, the agent that answers them, and the ids of their SIP objects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.models import NumberStatus, PhoneNumber, now
from gateway.cache.base import Cache, NoCache, number_key
from gateway.store.agents import ID_PREFIX as AGENT_PREFIX
from gateway.store.database import Database, Scope, one_at_a_time, whole
from gateway.store.tables import AgentRow, CredentialRow, PhoneNumberRow

MAX_PENDING = 100
"""The most numbers of a tenant that may await approval: nothing proves that it owns them."""


class TooManyPending(Exception):
    """MAX_PENDING numbers of the tenant already await approval."""


class NumberTaken(Exception):
    """Some tenant has attached the number already, or this tenant has claimed it already."""


class AgentGone(Exception):
    """The number's agent has been deleted."""


class CredentialGone(Exception):
    """The number's credential has been deleted."""


class NumberStore:
    """Every method is one transaction, and drops changed numbers from ``cache``."""

    def __init__(self, database: Database, cache: Cache | None = None) -> None:
        self._database = database
        self._cache = cache or NoCache()

    @whole
    async def insert(self, number: PhoneNumber) -> None:
        """Store a new number. Raises NumberTaken, CredentialGone, AgentGone, TooManyPending."""
        row = {name: getattr(number, name) for name in PhoneNumber.model_fields}
        row["number"] = row.pop("phone_number")
        try:
            async with self._database.write() as connection:
                if number.credential_id is not None:
                    # Lock the credential's row, so that it cannot be deleted concurrently.
                    kept = select(CredentialRow.id).where(CredentialRow.id == number.credential_id)
                    held = await connection.execute(kept.with_for_update(read=True))
                    if held.scalar_one_or_none() is None:
                        raise CredentialGone
                if not await _is_there(connection, number.agent_id, number.auth_id):
                    raise AgentGone
                if number.status == "pending":
                    await _refuse_many(connection, number.auth_id)
                await connection.execute(insert(PhoneNumberRow).values(**row))
        except IntegrityError:
            raise NumberTaken(number.phone_number) from None

    @whole
    async def get(self, scope: Scope, number_id: str) -> PhoneNumber | None:
        query = select(PhoneNumberRow.__table__).where(
            PhoneNumberRow.id == number_id, scope.owns(PhoneNumberRow.auth_id)
        )
        return await self._first(query)

    @whole
    async def by_number(self, scope: Scope, phone_number: str) -> PhoneNumber | None:
        """Find a number by E.164; of several claims visible to the scope, the attached one."""
        query = (
            select(PhoneNumberRow.__table__)
            .where(PhoneNumberRow.number == phone_number, scope.owns(PhoneNumberRow.auth_id))
            .order_by(PhoneNumberRow.status == "pending", PhoneNumberRow.created_at)
            .limit(1)
        )
        return await self._first(query)

    @whole
    async def page(
        self, scope: Scope, *, limit: int, offset: int, status: NumberStatus | None = None
    ) -> tuple[list[PhoneNumber], int]:
        """Return a page of numbers, newest first, and the total; ``status`` filters both."""
        query = select(PhoneNumberRow.__table__).where(scope.owns(PhoneNumberRow.auth_id))
        if status is not None:
            query = query.where(PhoneNumberRow.status == status)
        newest = (PhoneNumberRow.created_at, PhoneNumberRow.id)
        rows, total = await self._database.page(query, newest=newest, limit=limit, offset=offset)
        return [_number(row) for row in rows], total

    @whole
    async def provisioned(self) -> list[PhoneNumber]:
        """Return all tenants' numbers that LiveKit or a provider may know, for the repair."""
        query = (
            select(PhoneNumberRow.__table__)
            .where(PhoneNumberRow.status != "pending")
            .order_by(PhoneNumberRow.created_at)
        )
        async with self._database.read() as connection:
            return [_number(row) for row in (await connection.execute(query)).mappings()]

    @whole
    async def of_agent(self, scope: Scope, *agent_ids: str) -> list[PhoneNumber]:
        """Return the agents' numbers, ordered by the time of binding."""
        query = (
            select(PhoneNumberRow.__table__)
            .where(PhoneNumberRow.agent_id.in_(agent_ids), scope.owns(PhoneNumberRow.auth_id))
            .order_by(PhoneNumberRow.bound_at, PhoneNumberRow.id)
        )
        async with self._database.read() as connection:
            return [_number(row) for row in (await connection.execute(query)).mappings()]

    @whole
    async def bind(
        self,
        scope: Scope,
        number_id: str,
        agent_id: str | None,
        *,
        before: Collection[NumberStatus] = frozenset({"active"}),
        values: Mapping[str, Any] = MappingProxyType({}),
    ) -> PhoneNumber | None:
        """Bind the number to an agent of the same tenant, or to none, and set columns by name.

        For a file agent, check first that the file exists. None: no such number, no such agent, or
        the number's status is not in ``before``.
        """
        async with self._changing(number_id) as connection:
            number = await self._locked(connection, scope, number_id, before)
            if number is None or not await _is_there(connection, agent_id, number.auth_id):
                return None
            if number.agent_id != agent_id:
                moment = now() if agent_id is not None else None
                values = {**values, "agent_id": agent_id, "bound_at": moment}
            return await self._set(connection, number, values)

    @whole
    async def move(
        self,
        scope: Scope,
        number_id: str,
        before: Collection[NumberStatus],
        values: Mapping[str, Any],
        *,
        since: Mapping[str, Any] | None = None,
    ) -> PhoneNumber | None:
        """Set columns by name. None: no such number, or its status is not in ``before``, or its
        ``provider_ref`` is no longer ``since``.

        Raises NumberTaken if a claim was to become the attachment of a number that has one.
        """
        try:
            async with self._changing(number_id) as connection:
                number = await self._locked(connection, scope, number_id, before)
                if number is None or (since is not None and since != number.provider_ref):
                    return None
                return await self._set(connection, number, values)
        except IntegrityError:
            raise NumberTaken(number_id) from None

    @whole
    async def delete(self, number_id: str) -> bool:
        """Delete a number; check its tenant first. False: not found."""
        return await self._delete(number_id)

    @whole
    async def withdraw(self, number_id: str) -> bool:
        """Delete a claim; check its tenant first. False: it is no longer pending."""
        return await self._delete(number_id, PhoneNumberRow.status == "pending")

    async def _delete(self, number_id: str, *conditions: ColumnElement[bool]) -> bool:
        async with self._changing(number_id) as connection:
            gone = await connection.execute(
                delete(PhoneNumberRow)
                .where(PhoneNumberRow.id == number_id, *conditions)
                .returning(PhoneNumberRow.id)
            )
            return gone.scalar_one_or_none() is not None

    async def _locked(
        self,
        connection: AsyncConnection,
        scope: Scope,
        number_id: str,
        statuses: Collection[NumberStatus],
    ) -> PhoneNumber | None:
        query = select(PhoneNumberRow.__table__).where(
            PhoneNumberRow.id == number_id,
            PhoneNumberRow.status.in_(statuses),
            scope.owns(PhoneNumberRow.auth_id),
        )
        row = (await connection.execute(query.with_for_update())).mappings().one_or_none()
        return None if row is None else _number(row)

    async def _set(
        self, connection: AsyncConnection, number: PhoneNumber, values: Mapping[str, Any]
    ) -> PhoneNumber:
        if values:
            changed = update(PhoneNumberRow).where(PhoneNumberRow.id == number.id)
            await connection.execute(changed.values(dict(values)))
        return number.model_copy(update=dict(values))

    @asynccontextmanager
    async def _changing(self, number_id: str) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that changes the number, and drop the number from the cache.

        It is dropped even if the transaction fails: a commit whose confirmation was lost may have
        happened.
        """
        try:
            async with self._database.write() as connection:
                yield connection
        finally:
            await self._cache.forget(number_key(number_id))

    async def _first(self, query: Select[Any]) -> PhoneNumber | None:
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else _number(row)


async def _is_there(connection: AsyncConnection, agent_id: str | None, auth_id: str | None) -> bool:
    """Return True if a number of ``auth_id`` may have the agent.

    It may be None, a file agent, or an agent of the same tenant. The agent's row is locked, so that
    it cannot be deleted concurrently.
    """
    if agent_id is None or not agent_id.startswith(AGENT_PREFIX):
        return True
    agent = select(AgentRow.id).where(
        AgentRow.id == agent_id, AgentRow.auth_id.is_not_distinct_from(auth_id)
    )
    held = await connection.execute(agent.with_for_update(read=True))
    return held.scalar_one_or_none() is not None


async def _refuse_many(connection: AsyncConnection, auth_id: str | None) -> None:
    """Check the limit in the transaction that inserts another claim. Raises TooManyPending."""
    await one_at_a_time(connection, f"pending numbers of {auth_id}")
    pending = (
        select(func.count())
        .select_from(PhoneNumberRow)
        .where(
            PhoneNumberRow.status == "pending", PhoneNumberRow.auth_id.is_not_distinct_from(auth_id)
        )
    )
    if (await connection.scalar(pending) or 0) >= MAX_PENDING:
        raise TooManyPending


def _number(row: Any) -> PhoneNumber:
    values = dict(row)
    values["phone_number"] = values.pop("number")
    return PhoneNumber.model_validate(values)
