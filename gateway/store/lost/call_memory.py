"""The tools that ran in a call, stored until it ends, for an agent that takes over.

Arguments and results of tools are on no timeline. Workers report them as events ``memory.…``
(core.tools.memory), which gateway.store.calls hands over to here. They are sealed with
``SECRETS_KEY``, and never returned by the API. A call's rows are deleted in the transaction that
ends the call.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import (
    Integer,
    String,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from core.models import CallEvent
from core.tools.memory import MEMORY, TOOL_ANSWERED, TOOL_CALLED, ToolAnswered, ToolCalled, ToolRun
from gateway.store.credentials import Unreadable, Vault
from gateway.store.database import Database
from gateway.store.tables import Base, CallRow

MOST_RUNS: Final = 100
MOST_BYTES: Final = 512 * 1024
"""Of one call, sealed. Of a call that has more, the oldest runs are forgotten."""


class CallMemoryRow(Base):
    """A tool that ran in an unfinished call."""

    __tablename__ = "call_memory"

    call_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    """The tool call's."""
    number: Mapped[int] = mapped_column(Integer)
    """Orders the call's rows."""
    called: Mapped[str] = mapped_column(Text)
    """Fernet token of a ToolCalled."""
    answered: Mapped[str | None] = mapped_column(Text)
    """Fernet token of a ToolAnswered; NULL: not known."""


_KINDS: Final[dict[str, type[ToolCalled] | type[ToolAnswered]]] = {
    TOOL_CALLED: ToolCalled,
    TOOL_ANSWERED: ToolAnswered,
}

_TABLE: Any = CallMemoryRow.__table__
_OF_CALL = _TABLE.c.call_id == bindparam("call")
_ROWS = select(_TABLE).where(_OF_CALL).order_by(_TABLE.c.number)
_SIZES = (
    select(
        _TABLE.c.number,
        func.length(_TABLE.c.called) + func.coalesce(func.length(_TABLE.c.answered), 0),
    )
    .where(_OF_CALL)
    .order_by(_TABLE.c.number.desc())
)
_KNOWN = select(_TABLE.c.id).where(_OF_CALL, _TABLE.c.id == bindparam("run"))
_UNANSWERED = update(_TABLE).where(
    _OF_CALL, _TABLE.c.id == bindparam("run"), _TABLE.c.answered.is_(None)
)
_FORGET = delete(_TABLE).where(_OF_CALL, _TABLE.c.number <= bindparam("last"))
_DROP = delete(_TABLE).where(_OF_CALL)


def is_memory(event: CallEvent) -> bool:
    return event.type.startswith(MEMORY)


def memory_of(event: CallEvent) -> ToolCalled | ToolAnswered:
    """Return what an event whose type begins with ``memory.`` tells. Raises ValueError, whose text
    quotes nothing of it."""
    kind = _KINDS.get(event.type)
    if kind is None:
        raise ValueError("there is no memory of this type")
    try:
        return kind.model_validate(event.data)
    except ValidationError:
        raise ValueError("the data is not that of a tool") from None


class CallMemory:
    """Every method runs in its caller's transaction, which holds the call's row."""

    def __init__(self, vault: Vault | None) -> None:
        """Without a vault nothing is kept."""
        self._vault = vault

    async def keep(self, connection: AsyncConnection, call_id: str, event: CallEvent) -> None:
        """Keep what a worker reports. A run whose answer is known, and what is no memory, change
        nothing: reports come twice. One that is not may be called again under its id."""
        if self._vault is None:
            return
        try:
            told = memory_of(event)
        except ValueError:
            return
        sealed = self._vault.seal(told.wire())
        run = {"call": call_id, "run": told.id}
        if isinstance(told, ToolAnswered):
            await connection.execute(_UNANSWERED.values(answered=sealed), run)
        elif await connection.scalar(_KNOWN, run) is not None:
            await connection.execute(_UNANSWERED.values(called=sealed), run)
        else:
            sizes = (await connection.execute(_SIZES, {"call": call_id})).all()
            number = 1 + (sizes[0].number if sizes else 0)
            row = {"call_id": call_id, "id": told.id, "number": number, "called": sealed}
            await connection.execute(insert(_TABLE), row)
        await self._bound(connection, call_id)

    async def find(self, connection: AsyncConnection, call_id: str) -> list[ToolRun]:
        """Return the call's runs in the order in which they were called, without those sealed with
        a key that is gone."""
        if self._vault is None:
            return []
        rows = (await connection.execute(_ROWS, {"call": call_id})).mappings().all()
        found = []
        for row in rows:
            try:
                answered = row["answered"] and self._vault.open(row["answered"])
                found.append(
                    ToolRun(
                        called=ToolCalled.model_validate(self._vault.open(row["called"])),
                        answered=answered and ToolAnswered.model_validate(answered),
                    )
                )
            except (Unreadable, ValidationError):
                continue
        return sorted(found, key=lambda run: run.called.at_ms)

    async def drop(self, connection: AsyncConnection, call_id: str) -> None:
        await connection.execute(_DROP, {"call": call_id})

    async def _bound(self, connection: AsyncConnection, call_id: str) -> None:
        left = MOST_BYTES
        for place, (number, size) in enumerate(
            (await connection.execute(_SIZES, {"call": call_id})).all()
        ):
            left -= size
            if place >= MOST_RUNS or left < 0:
                await connection.execute(_FORGET, {"call": call_id, "last": number})
                return


async def sweep_call_memory(connection: AsyncConnection) -> None:
    """Delete what a gateway of a release before, which ended the call, has left."""
    live = select(true()).where(CallRow.id == _TABLE.c.call_id, CallRow.ended_at.is_(None)).exists()
    await connection.execute(delete(_TABLE).where(~live))


async def reseal_call_memory(database: Database, vault: Vault) -> int:
    """Encrypt all runs with the first key, and return their number.

    Raises Unreadable, and then nothing is changed.
    """
    async with database.write() as connection:
        rows = (await connection.execute(select(_TABLE))).mappings().all()
        for row in rows:
            answered = row["answered"] and vault.reseal(row["answered"])
            await connection.execute(
                update(_TABLE)
                .where(_TABLE.c.call_id == row["call_id"], _TABLE.c.id == row["id"])
                .values(called=vault.reseal(row["called"]), answered=answered)
            )
    return len(rows)
