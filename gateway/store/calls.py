"""Calls, their timelines, and the state that keeps a call from being placed twice.

The gateway is the only writer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.errors import ServerFault
from core.events import Source
from core.jobs import Heartbeat
from core.models import Agent, CallEvent, Direction, new_id, now
from core.tools.memory import ToolRun
from gateway.store.agent_secrets import AgentSecrets
from gateway.store.call_queries import CallQueries
from gateway.store.call_rows import (
    ADVANCE,
    CALL,
    CALLS_TABLE,
    EVENTS_TABLE,
    FOUND,
    STATE_FIELDS,
    Announcer,
    Step,
    adding_events,
    call_of,
    columns,
    event_row,
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
from gateway.store.database import Database, one_at_a_time, whole
from gateway.store.gateways.bell import Bell
from gateway.store.lost.call_memory import CallMemory, is_memory, sweep_call_memory
from gateway.store.once import IdempotencyKeys, tie
from gateway.store.places.fleet import WORKER_STALE, Kind, fleet_of, kind_of, unbooked
from gateway.store.places.load import Judge, Load, load_of
from gateway.store.places.places import NoPlace, Places, Wish, reserve
from gateway.store.room_names import refuse_held
from gateway.store.tables import IdempotencyRow, WorkerRow

IDEMPOTENCY_TTL = timedelta(hours=24)


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


class Store(CallQueries):
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
                await self.find_live_call(new.room_name, new.participant_identity) or ""
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
