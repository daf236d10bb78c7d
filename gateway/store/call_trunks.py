"""The trunk that a call's request specified, stored until the call ends.

A warm transfer goes out by the same trunk as the call, and the request for it may reach another
gateway than the one that placed the call. The row is inserted and deleted in the transactions
that begin and end the call (gateway.store.calls). It is sealed with ``SECRETS_KEY`` and never
returned by the API.
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
    """The trunk of a call. ``tenant`` chose its address; None: the operator did."""

    tenant: str | None = None


class CallTrunks:
    """Table of trunks; every method runs in its caller's transaction."""

    def __init__(self, vault: Vault | None) -> None:
        """Without a vault no trunk can be stored."""
        self._vault = vault

    async def keep(self, connection: AsyncConnection, call_id: str, trunk: OwnTrunk) -> None:
        """Store a call's trunk. Raises ValueError without a vault."""
        sealed = self._the_vault().seal(trunk.reveal())
        await connection.execute(_INSERT, {"call_id": call_id, "sealed": sealed})

    async def find(self, connection: AsyncConnection, call_id: str) -> OwnTrunk | None:
        """Return the call's trunk. Raises Unreadable, ValueError.

        None: the call has no trunk of its own, or has ended.
        """
        sealed = await connection.scalar(_SELECT, {"call": call_id})
        return None if sealed is None else OwnTrunk.model_validate(self._the_vault().open(sealed))

    async def drop(self, connection: AsyncConnection, call_id: str) -> None:
        await connection.execute(_DELETE, {"call": call_id})

    def _the_vault(self) -> Vault:
        if self._vault is None:
            raise ValueError("a call's trunk cannot be kept without a vault")
        return self._vault


async def reseal_call_trunks(database: Database, vault: Vault) -> int:
    """Encrypt all trunks with the first key, and return their number.

    Raises Unreadable, and then nothing is changed.
    """
    async with database.write() as connection:
        rows = (await connection.execute(select(_TABLE.c.call_id, _TABLE.c.sealed))).all()
        for call_id, sealed in rows:
            await connection.execute(
                update(_TABLE)
                .where(_TABLE.c.call_id == call_id)
                .values(sealed=vault.reseal(sealed))
            )
    return len(rows)
