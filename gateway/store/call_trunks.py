"""The trunk of a call that brought its own, kept for as long as the call lasts.

A warm transfer leaves by the same trunk as the call, and may be asked of another gateway than
the one that placed it. The row is written and dropped in the transactions that begin and end
the call (gateway.store.calls); it is sealed with ``SECRETS_KEY`` and never returned by the API.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.credentials import SipSecret, Vault
from gateway.store.database import Database
from gateway.store.tables import CallTrunkRow

_TABLE: Any = CallTrunkRow.__table__
_INSERT = insert(_TABLE)
_SELECT = select(_TABLE.c.sealed).where(_TABLE.c.call_id == bindparam("call"))
_DELETE = delete(_TABLE).where(_TABLE.c.call_id == bindparam("call"))


class OwnTrunk(SipSecret):
    """The trunk of a call. ``tenant``: who chose its address; None: the operator."""

    tenant: str | None = None


class CallTrunks:
    """Works in its caller's transaction."""

    def __init__(self, vault: Vault | None) -> None:
        """Without a vault no trunk can be kept."""
        self._vault = vault

    async def keep(self, connection: AsyncConnection, call_id: str, trunk: OwnTrunk) -> None:
        """Raises ValueError: there is no vault."""
        sealed = self._the_vault().seal(trunk.reveal())
        await connection.execute(_INSERT, {"call_id": call_id, "sealed": sealed})

    async def find(self, connection: AsyncConnection, call_id: str) -> OwnTrunk | None:
        """None: the call goes the usual way, or has ended. Raises Unreadable, ValueError."""
        sealed = await connection.scalar(_SELECT, {"call": call_id})
        return None if sealed is None else OwnTrunk.model_validate(self._the_vault().open(sealed))

    async def drop(self, connection: AsyncConnection, call_id: str) -> None:
        await connection.execute(_DELETE, {"call": call_id})

    def _the_vault(self) -> Vault:
        if self._vault is None:
            raise ValueError("a call's trunk cannot be kept without a vault")
        return self._vault


async def reseal_call_trunks(database: Database, vault: Vault) -> int:
    """With the first key; how many. Raises Unreadable, and then nothing is changed."""
    async with database.write() as connection:
        rows = (await connection.execute(select(_TABLE.c.call_id, _TABLE.c.sealed))).all()
        for call_id, sealed in rows:
            await connection.execute(
                update(_TABLE)
                .where(_TABLE.c.call_id == call_id)
                .values(sealed=vault.reseal(sealed))
            )
    return len(rows)
