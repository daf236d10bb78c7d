"""Webhook endpoints: one for a tenant's project, and one for each agent that has its own."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from core.models import Model, Timestamp, new_id, now
from core.webhooks.signing import new_secret
from gateway.store.credentials import Unreadable, Vault
from gateway.store.database import Database, whole
from gateway.store.tables import CallRow, WebhookRow

PROJECT = ""
"""Replaces the agent's id in the endpoint of a whole project."""

# Built once: it runs at every change of a call's status.
_EFFECTIVE = (
    select(WebhookRow.__table__)
    .where(
        WebhookRow.owner == bindparam("owner"),
        WebhookRow.agent_id.in_(bindparam("agent_ids", expanding=True)),
    )
    # The project's id is the empty string, so an agent's endpoint sorts first.
    .order_by(WebhookRow.agent_id.desc())
    .limit(1)
)


class WebhookEndpoint(Model):
    """A webhook endpoint; ``owner`` is the tenant's auth_id, "" for the unscoped operator."""

    id: str
    owner: str
    agent_id: str
    url: str
    secret: str
    context_limit: int
    timeout_s: int
    created_at: Timestamp


class WebhookStore:
    """Every method is one transaction. Those that return a secret raise Unreadable."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    @whole
    async def put(
        self, owner: str, agent_id: str, *, url: str, context_limit: int, timeout_s: int
    ) -> WebhookEndpoint:
        """Create or replace the endpoint, in either case with a new secret."""
        secret = new_secret()
        changed = {
            "url": url,
            "sealed": self._vault.seal({"secret": secret}),
            "context_limit": context_limit,
            "timeout_s": timeout_s,
        }
        statement = (
            self._database.insert(WebhookRow)
            .values(id=new_id("wh"), owner=owner, agent_id=agent_id, created_at=now(), **changed)
            .on_conflict_do_update(index_elements=["owner", "agent_id"], set_=changed)
            .returning(WebhookRow.__table__)
        )
        async with self._database.write() as connection:
            row = (await connection.execute(statement)).mappings().one()
        return self._endpoint(row)

    @whole
    async def get(self, owner: str, agent_id: str) -> WebhookEndpoint | None:
        """Return the endpoint set for exactly this agent, or for the project."""
        query = select(WebhookRow.__table__).where(
            WebhookRow.owner == owner, WebhookRow.agent_id == agent_id
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else self._endpoint(row)

    @whole
    async def effective(self, owner: str, agent_id: str | None) -> WebhookEndpoint | None:
        """Return the endpoint for the agent's events: its own, else the project's."""
        async with self._database.read() as connection:
            row = await effective_row(connection, owner, agent_id)
        return None if row is None else self._endpoint(row)

    @whole
    async def has(self, owner: str, agent_id: str) -> bool:
        """Return True if ``effective`` would find an endpoint."""
        async with self._database.read() as connection:
            return await effective_row(connection, owner, agent_id) is not None

    @whole
    async def of_call(self, call_id: str) -> WebhookEndpoint | None:
        """Return the endpoint that answers the call's turns."""
        call = select(CallRow.auth_id, CallRow.agent_id).where(CallRow.id == call_id)
        async with self._database.read() as connection:
            found = (await connection.execute(call)).one_or_none()
            if found is None:
                return None
            row = await effective_row(connection, found.auth_id or "", found.agent_id)
        return None if row is None else self._endpoint(row)

    @whole
    async def by_ids(self, ids: set[str]) -> dict[str, WebhookEndpoint | None]:
        """Return the endpoints that exist, by id; None for one whose secret cannot be read."""
        query = select(WebhookRow.__table__).where(WebhookRow.id.in_(ids))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return {row["id"]: self._readable(row) for row in rows}

    @whole
    async def delete(self, owner: str, agent_id: str) -> bool:
        """Delete the endpoint; its pending deliveries will fail. False: not found."""
        statement = (
            delete(WebhookRow)
            .where(WebhookRow.owner == owner, WebhookRow.agent_id == agent_id)
            .returning(WebhookRow.id)
        )
        async with self._database.write() as connection:
            return (await connection.execute(statement)).scalar_one_or_none() is not None

    @whole
    async def reseal(self) -> int:
        """Encrypt all secrets with the first key, and return their number.

        Raises Unreadable, and then nothing is changed.
        """
        async with self._database.write() as connection:
            rows = (await connection.execute(select(WebhookRow.id, WebhookRow.sealed))).all()
            for row in rows:
                await connection.execute(
                    update(WebhookRow)
                    .where(WebhookRow.id == row.id)
                    .values(sealed=self._vault.reseal(row.sealed))
                )
        return len(rows)

    def _readable(self, row: Any) -> WebhookEndpoint | None:
        try:
            return self._endpoint(row)
        except Unreadable:
            return None

    def _endpoint(self, row: Any) -> WebhookEndpoint:
        secret = self._vault.open(row["sealed"])["secret"]
        return WebhookEndpoint.model_validate({**row, "secret": secret}, extra="ignore")


async def effective_row(connection: AsyncConnection, owner: str, agent_id: str | None) -> Any:
    """Return the row that ``WebhookStore.effective`` finds, in the caller's transaction."""
    values = {"owner": owner, "agent_ids": [agent_id or PROJECT, PROJECT]}
    return (await connection.execute(_EFFECTIVE, values)).mappings().one_or_none()
