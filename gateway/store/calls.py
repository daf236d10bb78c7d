"""Calls, their timelines, and the state that keeps a call from being placed twice.

The gateway is the only writer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.errors import ServerFault
from core.events import Source
from core.jobs import Heartbeat
from core.models import Agent, CallEvent, Direction, Turn, new_id, now
from core.tools.memory import ToolRun
from gateway.store.agent_secrets import AgentSecrets
from gateway.store.bell import Bell
from gateway.store.call_memory import CallMemory, is_memory, sweep_call_memory
from gateway.store.call_rows import (
    ADVANCE,
    CALL,
    CALLS_TABLE,
    EVENTS,
    EVENTS_OF_TYPES,
    EVENTS_TABLE,
    FOUND,
    NEWER,
    NEWER_OR_AMONG,
    OWNED,
    STATE_FIELDS,
    Announcer,
    CallFilter,
    Step,
    adding_events,
    call_of,
    columns,
    event_row,
    in_spoken_order,
)
from gateway.store.call_status import (
    Call,
    CallState,
    CallType,
    StoredEvent,
    fold,
    is_former_agents_own,
)
from gateway.store.call_trunks import CallTrunks, OwnTrunk
from gateway.store.credentials import Unreadable, Vault
from gateway.store.database import Database, Scope, one_at_a_time, whole
from gateway.store.once import IdempotencyKeys, tie
from gateway.store.places.fleet import WORKER_STALE, Kind, fleet_of, kind_of, unbooked
from gateway.store.places.load import Judge, Load, load_of
from gateway.store.places.places import NoPlace, Places, Wish, reserve
from gateway.store.room_names import refuse_held
from gateway.store.tables import CallRow, EventRow, IdempotencyRow, WorkerRow

IDEMPOTENCY_TTL = timedelta(hours=24)
# Both databases accept about 32 000 values in a statement.
_NAMES_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCall:
    id: str
    auth_id: str | None
    direction: Direction
    room_name: str
    participant_identity: str
    from_number: str | None
    to_number: str | None
    max_duration_ms: int
    agent: Agent | None = None
    type: CallType = "pstn"
    phone_number_id: str | None = None
    own_trunk: OwnTrunk | None = None
    """The trunk that the request specified, stored sealed until the call ends; None: no own one."""
    metadata: dict[str, Any]
    record: bool = False


class LiveIdentity(Exception):
    """An unfinished call holds this identity in this room."""

    def __init__(self, call_id: str) -> None:
        super().__init__(call_id)
        self.call_id = call_id


class Store:
    """Every method is one transaction."""

    def __init__(
        self,
        database: Database,
        announcer: Announcer | None = None,
        vault: Vault | None = None,
        counted: Callable[[Source, int], None] | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        """``counted`` is called for each stored batch of events, with its source and size.

        Without ``vault`` no call can be stored whose agent (gateway.store.agent_secrets) or own
        trunk (gateway.store.call_trunks) has secrets.
        """
        self._database = database
        self._clock = clock
        self.keys = IdempotencyKeys(database, clock)
        self.places = Places(database, clock)
        self._announcer = announcer
        self._secrets = AgentSecrets(vault)
        self._trunks = CallTrunks(vault)
        self._memory = CallMemory(vault)
        self._add_event = adding_events(database)
        self.us = new_id("gw")
        """This gateway's id, which the calls that it inserts have as ``followed_by``."""
        self.bell = Bell(database, self.us)
        self._counted = counted or (lambda _source, _count: None)

    # --- calls and their timeline

    @whole
    async def insert_call(
        self,
        new: NewCall,
        first: CallEvent,
        *more: CallEvent,
        judge: Judge | None = None,
        wish: Wish | None = None,
    ) -> Call:
        """Store a new call with its first event and any others known by now.

        ``judge`` gets the load in the same transaction and may raise an error; no other call of the
        tenant can be inserted in between, by any gateway. Likewise a place is reserved for the
        ``wish`` of a call with an agent; NoPlace is raised if there is none and it may not wait.
        Raises LiveIdentity, HeldByToken (gateway.store.room_names) for an outbound call if a token
        for its identity is valid, and Unavailable if the request has lost its idempotency key
        (gateway.store.once).
        """
        state = CallState()
        folded: list[tuple[CallEvent, CallState | None, CallState]] = [(first, None, state)]
        for item in more:
            before, state = state, fold(state, item, "gateway")
            folded.append((item, before, state))
        row = {
            "id": new.id,
            "auth_id": new.auth_id,
            "agent_id": new.agent.id if new.agent else None,
            "agent_version": new.agent.version if new.agent else None,
            "agent": self._secrets.pin(new.agent) if new.agent else None,
            "phone_number_id": new.phone_number_id,
            "from_number": new.from_number,
            "to_number": new.to_number,
            "direction": new.direction,
            "type": new.type,
            "max_duration_ms": new.max_duration_ms,
            "room_name": new.room_name,
            "participant_identity": new.participant_identity,
            "metadata": new.metadata,
            "record": new.record,
            "created_at": first.at,
            "followed_by": self.us,
            **columns(state),
        }
        events = [event_row(new.id, new.auth_id, item, "gateway") for item in (first, *more)]
        try:
            async with self._database.write() as connection:
                if judge is not None or wish is not None:
                    row |= await self._admitted(connection, new, judge, wish)
                await tie(connection, new.id)
                if new.direction == "outbound":
                    await refuse_held(
                        connection, new.room_name, new.participant_identity, self._clock()
                    )
                await connection.execute(insert(CALLS_TABLE), row)
                await connection.execute(insert(EVENTS_TABLE), events)
                if new.own_trunk is not None and state.ended_at is None:
                    await self._trunks.keep(connection, new.id, new.own_trunk)
                steps = [Step(*step, new.auth_id, row) for step in folded]
                told = await self._announce(connection, steps)
                await self.bell.ring(connection, new.id)
        except IntegrityError:
            raise LiveIdentity(
                await self._live_call(new.room_name, new.participant_identity) or ""
            ) from None
        self._wake(told)
        self._counted("gateway", len(events))
        return call_of(row)

    async def _admitted(
        self, connection: AsyncConnection, new: NewCall, judge: Judge | None, wish: Wish | None
    ) -> dict[str, str]:
        """Return the columns of the place of a new call. Raises as the judge does, and NoPlace."""
        if judge is not None:
            await one_at_a_time(connection, f"calls of {new.auth_id}")
        fleet, seat = None, None
        if wish is not None:
            fleet, seat = await reserve(connection, wish, kind_of(new.type), self._clock())
        if judge is not None:
            judge(await load_of(connection, new.auth_id, fleet))
        if wish is None or fleet is None:
            return {}
        if seat is not None:
            return {"place": "held", "place_worker": seat.worker_id}
        if not wish.patience_s:
            raise NoPlace(fleet.why or "workers_full")
        return {"place": "wanted"}

    @whole
    async def append(
        self, call_id: str, events: Sequence[CallEvent], source: Source, *, epoch: int | None = None
    ) -> list[StoredEvent] | None:
        """Append the new ones among ``events`` and fold them into the call; None: no such call.

        ``epoch``: the agent's that reports them. Of a former agent's only history is appended.
        What is to be remembered until the call ends (core.tools.memory) is not on the timeline.
        """
        if not events:
            return []
        async with self._database.write() as connection:
            found = await connection.execute(CALL, {"call": call_id})
            row = found.mappings().one_or_none()
            if row is None:
                return None
            stored: list[StoredEvent] = []
            steps: list[Step] = []
            state = before = CallState(**{name: row[name] for name in STATE_FIELDS})
            for item in events:
                former = epoch is not None and epoch < state.agent_epoch
                if former and is_former_agents_own(item):
                    continue
                if is_memory(item):
                    if state.ended_at is None and epoch is not None and epoch <= state.agent_epoch:
                        await self._memory.keep(connection, call_id, item)
                    continue
                values = event_row(call_id, row["auth_id"], item, source)
                seq = (await connection.execute(self._add_event, values)).scalar_one_or_none()
                if seq is None:
                    continue
                previous, state = state, fold(state, item, source)
                steps.append(Step(item, previous, state, row["auth_id"], dict(row)))
                stored.append(
                    StoredEvent(**item.model_dump(), call_id=call_id, seq=seq, source=source)
                )
            if state != before:
                await connection.execute(ADVANCE, {"call": call_id, **columns(state)})
            if before.ended_at is None and state.ended_at is not None:
                await self._trunks.drop(connection, call_id)
                await self._memory.drop(connection, call_id)
            told = await self._announce(connection, steps)
            if stored:
                await self.bell.ring(connection, call_id)
        self._wake(told)
        self._counted(source, len(stored))
        return stored

    async def _announce(self, connection: AsyncConnection, steps: Sequence[Step]) -> bool:
        return self._announcer is not None and await self._announcer.announce(connection, steps)

    def _wake(self, told: bool) -> None:
        if self._announcer is not None and told:
            self._announcer.wake()

    @whole
    async def call(self, scope: Scope, call_id: str) -> Call | None:
        async with self._database.read() as connection:
            query = FOUND if scope.auth_id is None else OWNED
            values = {"call": call_id, "auth_id": scope.auth_id}
            row = (await connection.execute(query, values)).mappings().one_or_none()
            return None if row is None else call_of(row)

    @whole
    async def calls(
        self, scope: Scope, where: CallFilter, *, limit: int, offset: int
    ) -> tuple[list[Call], int]:
        """Return a page of calls, newest first, and the total number."""
        query = where.among(select(CallRow.__table__).where(scope.owns(CallRow.auth_id)))
        newest = (CallRow.created_at, CallRow.id)
        rows, total = await self._database.page(query, newest=newest, limit=limit, offset=offset)
        return [call_of(row) for row in rows], total

    @whole
    async def events(
        self, call_id: str, *, after: int = 0, types: Sequence[str] = ()
    ) -> list[StoredEvent]:
        """Return a call's events by arrival; check first that the client may see the call."""
        query = EVENTS_OF_TYPES if types else EVENTS
        values = {"call": call_id, "after": after, **({"types": list(types)} if types else {})}
        async with self._database.read() as connection:
            rows = (await connection.execute(query, values)).mappings().all()
        return [StoredEvent.model_validate(dict(row)) for row in rows]

    @whole
    async def newest_event(self) -> int:
        """Return the ``seq`` of the newest event of any call; 0 if there is none."""
        async with self._database.read() as connection:
            return await connection.scalar(select(func.max(EventRow.seq))) or 0

    @whole
    async def events_since(self, seq: int, among: Sequence[int]) -> list[tuple[int, str]]:
        """Return ``seq`` and call id of all events after ``seq``, and of those in ``among``."""
        newer = NEWER_OR_AMONG if among else NEWER
        values = {"after": seq, **({"among": list(among)} if among else {})}
        async with self._database.read() as connection:
            rows = (await connection.execute(newer, values)).all()
        return [(row.seq, row.call_id) for row in rows]

    @whole
    async def turns(self, call_id: str) -> list[Turn]:
        """Return the newest version of each turn, in the order in which they were spoken."""
        events = await self.events(call_id, types=["turn"])
        return in_spoken_order([item.data for item in events])

    @whole
    async def last_turns(self, call_ids: Sequence[str]) -> dict[str, Turn]:
        """Return the most recently reported turn of each call; calls without turns are left out."""
        newest = (
            select(func.max(EventRow.seq))
            .where(EventRow.call_id.in_(call_ids), EventRow.type == "turn")
            .group_by(EventRow.call_id)
        )
        query = select(EventRow.call_id, EventRow.data).where(EventRow.seq.in_(newest))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return {call_id: Turn.model_validate(data) for call_id, data in rows}

    @whole
    async def load(self, auth_id: str | None, agent_name: str, kind: Kind = "room") -> Load:
        """Return the current load of this tenant (None: the operator) and in total."""
        moment = self._clock()
        async with self._database.read() as connection:
            fleet = await fleet_of(connection, kind, agent_name, moment, timedelta(0))
            return await load_of(connection, auth_id, fleet)

    @whole
    async def call_and_agent(self, call_id: str) -> tuple[Call, Agent | None] | None:
        """Return the record, and the agent that the call pinned.

        Raises ServerFault ``CREDENTIAL_UNREADABLE`` if the key of the agent's secrets is gone.
        """
        async with self._database.read() as connection:
            row = (await connection.execute(FOUND, {"call": call_id})).mappings().one_or_none()
        if row is None:
            return None
        agent = self._secrets.unpin(row["agent"]) if row["agent"] else None
        return call_of(row), agent

    @whole
    async def own_trunk(self, call_id: str) -> OwnTrunk | None:
        """Return the trunk that the call's request specified, until the call has ended.

        Raises ServerFault ``CREDENTIAL_UNREADABLE`` if the key that sealed it is gone.
        """
        async with self._database.read() as connection:
            try:
                return await self._trunks.find(connection, call_id)
            except Unreadable:
                raise ServerFault(
                    "The call's trunk was encrypted with a key that SECRETS_KEY does not hold",
                    code="CREDENTIAL_UNREADABLE",
                ) from None

    @whole
    async def tools(self, call_id: str) -> list[ToolRun]:
        """Return the tools that ran in an unfinished call, in their order."""
        async with self._database.read() as connection:
            return await self._memory.find(connection, call_id)

    @whole
    async def find_live_call(self, room_name: str, participant_identity: str) -> str | None:
        """Return the id of this participant's unfinished call, for LiveKit's webhooks."""
        return await self._live_call(room_name, participant_identity)

    @whole
    async def unfinished_calls(self, *, created_before: datetime) -> list[Call]:
        query = (
            select(CallRow.__table__)
            .where(CallRow.ended_at.is_(None), CallRow.created_at < created_before)
            .order_by(CallRow.created_at)
        )
        async with self._database.read() as connection:
            return [call_of(row) for row in (await connection.execute(query)).mappings()]

    @whole
    async def rooms_of_ended(
        self, rooms: Sequence[str], *, created_after: datetime, ended_before: datetime
    ) -> list[str]:
        """Return those of ``rooms`` that such a call used; all must pass gateway.fields.names."""
        found: set[str] = set()
        async with self._database.read() as connection:
            for start in range(0, len(rooms), _NAMES_AT_ONCE):
                query = select(CallRow.room_name).where(
                    CallRow.room_name.in_(rooms[start : start + _NAMES_AT_ONCE]),
                    CallRow.created_at > created_after,
                    CallRow.ended_at < ended_before,
                )
                found.update(await connection.scalars(query.distinct()))
        return sorted(found)

    async def _live_call(self, room_name: str, participant_identity: str) -> str | None:
        query = select(CallRow.id).where(
            CallRow.room_name == room_name,
            CallRow.participant_identity == participant_identity,
            CallRow.ended_at.is_(None),
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar_one_or_none()

    # --- workers

    @whole
    async def sweep(self) -> None:
        """Delete expired keys, workers not seen for an hour, and what ended calls have left.

        Lost places are free again.
        """
        await self.places.sweep()
        moment = self._clock()
        async with self._database.write() as connection:
            for stale in (
                IdempotencyRow.created_at < moment - IDEMPOTENCY_TTL,
                WorkerRow.seen_at < moment - timedelta(hours=1),
            ):
                await connection.execute(delete(stale.left.table).where(stale))
            await sweep_call_memory(connection)

    @whole
    async def heartbeat(self, beat: Heartbeat) -> None:
        values = {**beat.model_dump(exclude={"calls"}), "seen_at": self._clock()}
        async with self._database.write() as connection:
            values["unbooked"] = await unbooked(connection, beat)
            insert_it = self._database.insert(WorkerRow).values(**values)
            upsert = insert_it.on_conflict_do_update(index_elements=["worker_id"], set_=values)
            await connection.execute(upsert)

    @whole
    async def workers(self) -> list[Heartbeat]:
        """Return the workers with a recent heartbeat."""
        fresh = self._clock() - WORKER_STALE
        query = select(WorkerRow.__table__).where(WorkerRow.seen_at >= fresh)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [Heartbeat.model_validate(dict(row), extra="ignore") for row in rows]
