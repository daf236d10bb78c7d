"""Agents made through the API, with their immutable versions.

What is secret in them (gateway.store.agent_secrets) is sealed in every row.
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
    """An agent made through the API, as it is now."""

    id: str
    auth_id: str | None
    version: int
    config: AgentConfig
    created_at: Timestamp
    updated_at: Timestamp

    @property
    def agent(self) -> Agent:
        """What a call pins."""
        return Agent(id=self.id, version=self.version, config=self.config)


class AgentStore:
    """Every method is one transaction. ``cache`` forgets what one has changed.

    What shows an agent raises ServerFault ``CREDENTIAL_UNREADABLE`` for one whose secrets were
    sealed with a key that is not there any more.
    """

    def __init__(
        self, database: Database, cache: Cache | None = None, vault: Vault | None = None
    ) -> None:
        """Without ``vault`` no agent with secrets can be kept."""
        self._database = database
        self._cache = cache or NoCache()
        self._secrets = AgentSecrets(vault)
        # Changes of one agent wait here, not each with a connection on the row's lock: a tenant
        # in a hurry must not use up the pool.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @whole
    async def create(self, scope: Scope, config: AgentConfig) -> AgentRecord:
        """A new agent at version 1."""
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
        """Newest first, and how many there are in all."""
        query = select(AgentRow.__table__).where(scope.owns(AgentRow.auth_id))
        newest = (AgentRow.created_at, AgentRow.id)
        rows, total = await self._database.page(query, newest=newest, limit=limit, offset=offset)
        return [self._record(row) for row in rows], total

    @whole
    async def change(
        self, scope: Scope, agent_id: str, edit: Callable[[AgentConfig], AgentConfig]
    ) -> AgentRecord | None:
        """A new version with what ``edit`` makes of the current one; None: no such agent.

        Of concurrent changes each sees the one before it, so none is lost. A change that
        changes nothing makes no version. What ``edit`` raises comes out, nothing is written.
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
        """Newest first; empty when there is no such agent."""
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
        """Remove it with its versions and unbind its numbers; its calls stay. None: not there."""
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
            # Without a key an agent can still be got rid of.
            config = without_secrets(row["config"])
            return AgentRecord.model_validate({**row, "config": config})

    def dump(self, record: AgentRecord) -> str:
        """As it is kept in a cache: JSON, with what is secret sealed."""
        whole = record.wire()
        return json.dumps({**whole, "config": self._secrets.seal(whole["config"])})

    def parse(self, text: str) -> AgentRecord:
        """What ``dump`` made. Raises ValueError for what another release made, or another key."""
        if MARK not in text:
            return AgentRecord.model_validate_json(text)
        try:
            kept = json.loads(text)
            kept["config"] = self._secrets.open(kept["config"])
        except (Unreadable, KeyError, TypeError, AttributeError):
            raise ValueError("not an agent of this gateway's") from None
        # Its times are strings, as JSON's are.
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
        """A transaction, and the cached keys that it changes; forgotten also when it fails:

        a commit whose confirmation was lost may still have happened.
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
    """``row``: the agent's own, for what is sealed in it."""
    return {
        "agent_id": record.id,
        "version": record.version,
        "config": row["config"],
        "created_at": record.updated_at,
    }


def agent_not_found() -> NotFound:
    return NotFound("Agent not found", code="AGENT_NOT_FOUND")
