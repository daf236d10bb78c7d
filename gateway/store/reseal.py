"""``python -m gateway reseal``: re-encrypt all secrets with the first key of SECRETS_KEY."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from core.settings import Settings
from gateway.store.agent_secrets import MARK, AgentSecrets
from gateway.store.call_trunks import reseal_call_trunks
from gateway.store.credentials import CredentialStore, Unreadable, Vault
from gateway.store.database import Database
from gateway.store.lost.call_memory import reseal_call_memory
from gateway.store.recordings.exports import Exports
from gateway.store.tables import AgentRow, AgentVersionRow, CallRow
from gateway.store.webhooks import WebhookStore

_BATCH = 500


async def reseal(settings: Settings) -> int:
    """Re-encrypt all secrets, and return their number.

    Raises ValueError if one cannot be read, which is left as it was.
    """
    vault = Vault.from_settings(settings)
    database = await Database.open(settings.database_url)
    try:
        credentials = await CredentialStore(database, vault).reseal()
        webhooks = await WebhookStore(database, vault).reseal()
        trunks = await reseal_call_trunks(database, vault)
        exports = await Exports(database, vault).reseal()
        calls = trunks + await reseal_call_memory(database, vault)
        return credentials + webhooks + calls + exports + await _reseal_agents(database, vault)
    except Unreadable:
        raise ValueError(
            "SECRETS_KEY holds no key for some secret; add that key and try again"
        ) from None
    finally:
        await database.close()


async def _reseal_agents(database: Database, vault: Vault) -> int:
    """Reseal agents' secrets (gateway.store.agent_secrets); return the number of rows with any.

    Raises Unreadable, and then nothing is changed.
    """
    secrets = AgentSecrets(vault)
    async with database.write() as connection:
        agents = await _reseal_column(connection, secrets, AgentRow.config, AgentRow.id)
        versions = await _reseal_column(
            connection,
            secrets,
            AgentVersionRow.config,
            AgentVersionRow.agent_id,
            AgentVersionRow.version,
        )
        calls = await _reseal_column(connection, secrets, CallRow.agent, CallRow.id)
    return agents + versions + calls


async def _reseal_column(
    connection: AsyncConnection, secrets: AgentSecrets, kept: Any, *key: Any
) -> int:
    """Reseal one table; ``kept`` is its column with a configuration or an agent."""
    count = 0
    after: ColumnElement[bool] | None = None
    while True:
        query = select(*key, kept).where(cast(kept, Text).contains(MARK)).order_by(*key)
        if after is not None:
            query = query.where(after)
        rows = (await connection.execute(query.limit(_BATCH))).all()
        for *values, content in rows:
            row = and_(*(column == value for column, value in zip(key, values, strict=True)))
            resealed = _resealed(secrets, content)
            await connection.execute(update(kept.class_).where(row).values({kept: resealed}))
        count += len(rows)
        if len(rows) < _BATCH:
            return count
        after = _later(key, rows[-1])


def _resealed(secrets: AgentSecrets, content: dict[str, Any]) -> dict[str, Any]:
    if "config" in content:
        return {**content, "config": secrets.reseal(content["config"])}
    return secrets.reseal(content)


def _later(key: tuple[Any, ...], last: Any) -> ColumnElement[bool]:
    return tuple_(*key) > tuple(last[: len(key)])
