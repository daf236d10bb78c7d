"""Calls and their timelines as rows, and the statements that run several times per call.

The statements are built once, since building one takes longer than executing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Select, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from core.events import Source
from core.models import CallEvent, Direction, Status, Turn
from core.recordings.config import Consent
from gateway.store.call_status import Call, CallState, CallType
from gateway.store.database import Database
from gateway.store.tables import CallRow, EventRow

STATE_FIELDS = tuple(field.name for field in fields(CallState))

CALLS_TABLE: Any = CallRow.__table__
EVENTS_TABLE: Any = EventRow.__table__
FOUND = select(CALLS_TABLE).where(CALLS_TABLE.c.id == bindparam("call"))
OWNED = FOUND.where(CALLS_TABLE.c.auth_id == bindparam("auth_id"))
CALL = FOUND.with_for_update()
ADVANCE = update(CALLS_TABLE).where(CALLS_TABLE.c.id == bindparam("call"))
EVENTS = (
    select(EVENTS_TABLE)
    .where(EVENTS_TABLE.c.call_id == bindparam("call"), EVENTS_TABLE.c.seq > bindparam("after"))
    .order_by(EVENTS_TABLE.c.seq)
)
EVENTS_OF_TYPES = EVENTS.where(EVENTS_TABLE.c.type.in_(bindparam("types", expanding=True)))

NEWER = select(EVENTS_TABLE.c.seq, EVENTS_TABLE.c.call_id).where(
    EVENTS_TABLE.c.seq > bindparam("after")
)
NEWER_OR_AMONG = NEWER.union_all(
    select(EVENTS_TABLE.c.seq, EVENTS_TABLE.c.call_id).where(
        EVENTS_TABLE.c.seq.in_(bindparam("among", expanding=True))
    )
)


@dataclass(frozen=True, slots=True)
class CallFilter:
    statuses: Sequence[Status] = ()
    direction: Direction | None = None
    type: CallType | None = None
    agent_id: str | None = None
    phone_number_id: str | None = None
    search: str | None = None
    """Part of the caller's or callee's number, or the whole id."""
    since: datetime | None = None
    until: datetime | None = None

    def among(self, query: Select[Any]) -> Select[Any]:
        """Return ``query``, narrowed to these calls."""
        if self.statuses:
            query = query.where(CallRow.status.in_(self.statuses))
        if self.direction:
            query = query.where(CallRow.direction == self.direction)
        if self.type:
            query = query.where(CallRow.type == self.type)
        if self.agent_id:
            query = query.where(CallRow.agent_id == self.agent_id)
        if self.phone_number_id:
            query = query.where(CallRow.phone_number_id == self.phone_number_id)
        if self.search:
            query = query.where(
                CallRow.from_number.contains(self.search, autoescape=True)
                | CallRow.to_number.contains(self.search, autoescape=True)
                | (CallRow.id == self.search)
            )
        if self.since:
            query = query.where(CallRow.created_at >= self.since)
        if self.until:
            query = query.where(CallRow.created_at < self.until)
        return query


@dataclass(frozen=True, slots=True)
class Step:
    """One event folded into a call's state; ``before`` is None for the call's first event."""

    event: CallEvent
    before: CallState | None
    after: CallState
    auth_id: str | None
    row: Mapping[str, Any]

    def call(self) -> Call:
        """Return the record as it was after this event."""
        return call_of({**self.row, **columns(self.after)})


class Announcer(Protocol):
    """Announces a call's events to third parties (gateway.store.outbox)."""

    async def announce(self, connection: AsyncConnection, steps: Sequence[Step]) -> bool:
        """Run in the transaction that stores the events; True if anything is to be announced."""

    def wake(self) -> None:
        """Run after that transaction."""


def adding_events(database: Database) -> Any:
    """Return the statement that adds an event; it yields ``seq``, or nothing for a duplicate."""
    return (
        database.insert(EVENTS_TABLE)
        .on_conflict_do_nothing(index_elements=["id"])
        .returning(EVENTS_TABLE.c.seq)
    )


def columns(state: CallState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in STATE_FIELDS}


def event_row(call_id: str, auth_id: str | None, item: CallEvent, source: Source) -> dict[str, Any]:
    return {
        "id": item.id,
        "auth_id": auth_id,
        "call_id": call_id,
        "type": item.type,
        "source": source,
        "at": item.at,
        "data": item.data,
    }


def call_of(row: Any) -> Call:
    values = {name: row[name] for name in Call.model_fields if name in row}
    values["disconnection_reason"] = row["reason"]
    if row["agent"]:
        config = row["agent"]["config"]
        values["agent_name"] = config["name"]
        values["agent_consent"] = Consent.model_validate(config.get("consent", {}))
    return Call.model_validate(values)


def in_spoken_order(told: Iterable[dict[str, Any]]) -> list[Turn]:
    """Return the newest version of each turn, in the order in which they were spoken."""
    turns = {turn.id: turn for turn in map(Turn.model_validate, told)}
    return sorted(turns.values(), key=_spoken_at)


def _spoken_at(turn: Turn) -> tuple[int, datetime]:
    offsets = [turn.start_ms, turn.response_start_ms]
    known = [offset for offset in offsets if offset is not None]
    return (min(known) if known else 0, turn.created_at)
