"""Agents made through the API, with their immutable versions.

Their secrets are sealed in every row (gateway.store.agent_secrets).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from core.errors import NotFound
from core.models import Agent, AgentConfig, Model, Timestamp, new_id, now
from gateway.cache.base import Cache, NoCache, agent_key, number_key
from gateway.store.agent_secrets import MARK, AgentSecrets, unreadable, without_secrets
from gateway.store.credentials import Unreadable, Vault
from gateway.store.database import Database, Scope, whole
from gateway.store.tables import AgentRow, AgentVersionRow, PhoneNumberRow

ID_PREFIX = "agt"


class AgentVersion(Model):
    """One immutable version of an agent made through the API."""

    version: int
    config: AgentConfig
    created_at: Timestamp


class AgentRecord(Model):
    """The current state of an agent made through the API."""

    id: str
    auth_id: str | None
    version: int
    config: AgentConfig
    created_at: Timestamp
    updated_at: Timestamp

    @property
    def agent(self) -> Agent:
        """The agent at its current version, which a call pins."""
        return Agent(id=self.id, version=self.version, config=self.config)


class AgentStore:
    """Every method is one transaction, and drops changed records from ``cache``.

    Methods that return an agent raise ServerFault ``CREDENTIAL_UNREADABLE`` if its secrets were
    sealed with a key that has been removed.
    """

    def __init__(
        self, database: Database, cache: Cache | None = None, vault: Vault | None = None
    ) -> None:
        """Without ``vault`` no agent with secrets can be stored."""
        self._database = database
        self._cache = cache or NoCache()
        self._secrets = AgentSecrets(vault)
        # Concurrent changes of one agent queue here. If each waited for the row's lock with a
        # connection of its own, one tenant could exhaust the pool.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @whole
    async def create(self, scope: Scope, config: AgentConfig) -> AgentRecord:
        """Create an agent at version 1."""
        moment = now()
        record = AgentRecord(
            id=new_id(ID_PREFIX),
            auth_id=scope.auth_id,
            version=1,
            config=config,
            created_at=moment,
            updated_at=moment,
        )
        row = {**_plain(record), "config": self._secrets.seal(config.wire())}
        async with self._database.write() as connection:
            await connection.execute(insert(AgentRow).values(**row))
            await connection.execute(insert(AgentVersionRow).values(**_version(record, row)))
        return record

    @whole
    async def get(self, scope: Scope, agent_id: str) -> AgentRecord | None:
        query = select(AgentRow.__table__).where(
            AgentRow.id == agent_id, scope.owns(AgentRow.auth_id)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else self._record(row)

    @whole
    async def page(self, scope: Scope, *, limit: int, offset: int) -> tuple[list[AgentRecord], int]:
        """Return a page of agents, newest first, and the total number."""
        query = select(AgentRow.__table__).where(scope.owns(AgentRow.auth_id))
        newest = (AgentRow.created_at, AgentRow.id)
        rows, total = await self._database.page(query, newest=newest, limit=limit, offset=offset)
        return [self._record(row) for row in rows], total

    @whole
    async def change(
        self, scope: Scope, agent_id: str, edit: Callable[[AgentConfig], AgentConfig]
    ) -> AgentRecord | None:
        """Add a version whose configuration is ``edit(current)``; None: no such agent.

        Concurrent changes are applied one after the other, so none is lost. An edit that changes
        nothing adds no version. If ``edit`` raises, nothing is written.
        """
        async with self._changing(agent_key(agent_id)) as (connection, _):
            query = (
                select(AgentRow.__table__)
                .where(AgentRow.id == agent_id, scope.owns(AgentRow.auth_id))
                .with_for_update()
            )
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                return None
            before = self._record(row)
            config = edit(before.config)
            if config == before.config:
                return before
            after = before.model_copy(
                update={"version": before.version + 1, "config": config, "updated_at": now()}
            )
            kept = {"config": self._secrets.seal(config.wire())}
            await connection.execute(
                update(AgentRow)
                .where(AgentRow.id == agent_id)
                .values(version=after.version, updated_at=after.updated_at, **kept)
            )
            await connection.execute(insert(AgentVersionRow).values(**_version(after, kept)))
            return after

    @whole
    async def version(self, scope: Scope, agent_id: str, version: int) -> Agent | None:
        query = (
            select(AgentVersionRow.__table__)
            .join(AgentRow, AgentRow.id == AgentVersionRow.agent_id)
            .where(
                AgentVersionRow.agent_id == agent_id,
                AgentVersionRow.version == version,
                scope.owns(AgentRow.auth_id),
            )
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            return None
        config = AgentConfig.model_validate(self._opened(row["config"]))
        return Agent(id=agent_id, version=version, config=config)

    @whole
    async def versions(
        self, scope: Scope, agent_id: str, *, limit: int, offset: int
    ) -> tuple[list[AgentVersion], int]:
        """Return a page of versions, newest first, and the total; empty if no such agent exists."""
        query = (
            select(AgentVersionRow.__table__)
            .join(AgentRow, AgentRow.id == AgentVersionRow.agent_id)
            .where(AgentVersionRow.agent_id == agent_id, scope.owns(AgentRow.auth_id))
        )
        newest = (AgentVersionRow.version,)
        rows, total = await self._database.page(query, newest=newest, limit=limit, offset=offset)
        return [
            AgentVersion.model_validate({**row, "config": self._opened(row["config"])})
            for row in rows
        ], total

    @whole
    async def delete(self, scope: Scope, agent_id: str) -> AgentRecord | None:
        """Delete an agent and its versions, and unbind its numbers; calls stay. None: not found."""
        async with self._changing(agent_key(agent_id)) as (connection, changed):
            query = select(AgentRow.__table__).where(
                AgentRow.id == agent_id, scope.owns(AgentRow.auth_id)
            )
            row = (await connection.execute(query.with_for_update())).mappings().one_or_none()
            if row is None:
                return None
            unbound = await connection.scalars(
                update(PhoneNumberRow)
                .where(PhoneNumberRow.agent_id == agent_id)
                .values(agent_id=None, bound_at=None)
                .returning(PhoneNumberRow.id)
            )
            changed += map(number_key, unbound)
            await connection.execute(
                delete(AgentVersionRow).where(AgentVersionRow.agent_id == agent_id)
            )
            await connection.execute(delete(AgentRow).where(AgentRow.id == agent_id))
            # An agent can be deleted even if its secrets cannot be read.
            config = without_secrets(row["config"])
            return AgentRecord.model_validate({**row, "config": config})

    def dump(self, record: AgentRecord) -> str:
        """Return the record as JSON for the cache, with its secrets sealed."""
        whole = record.wire()
        return json.dumps({**whole, "config": self._secrets.seal(whole["config"])})

    def parse(self, text: str) -> AgentRecord:
        """Undo ``dump``. Raises ValueError for another release's text or another key's secrets."""
        if MARK not in text:
            return AgentRecord.model_validate_json(text)
        try:
            kept = json.loads(text)
            kept["config"] = self._secrets.open(kept["config"])
        except (Unreadable, KeyError, TypeError, AttributeError):
            raise ValueError("not an agent of this gateway's") from None
        # The times are strings, so the record must be validated as JSON.
        return AgentRecord.model_validate_json(json.dumps(kept))

    def _record(self, row: Any) -> AgentRecord:
        return AgentRecord.model_validate({**row, "config": self._opened(row["config"])})

    def _opened(self, config: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._secrets.open(config)
        except Unreadable:
            raise unreadable() from None

    @asynccontextmanager
    async def _changing(self, key: str) -> AsyncIterator[tuple[AsyncConnection, list[str]]]:
        """Open a transaction, and yield it with the list of cache keys that it changes.

        The keys are dropped from the cache even if the transaction fails: a commit whose
        confirmation was lost may have happened.
        """
        changed = [key]
        async with self._turns.setdefault(key, asyncio.Lock()):
            try:
                async with self._database.write() as connection:
                    yield connection, changed
            finally:
                await self._cache.forget(*changed)


def _plain(record: AgentRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in AgentRecord.model_fields}


def _version(record: AgentRecord, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the version's row; its sealed configuration is taken from the agent's ``row``."""
    return {
        "agent_id": record.id,
        "version": record.version,
        "config": row["config"],
        "created_at": record.updated_at,
    }


def agent_not_found() -> NotFound:
    return NotFound("Agent not found", code="AGENT_NOT_FOUND")
