"""Calls: one contract on both databases, SQLite in a file and PostgreSQL from its wheel."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from core.errors import Unavailable
from core.events import ended
from core.jobs import Heartbeat
from core.models import Agent, AgentConfig, CallEvent, Turn, new_id, now
from gateway.store.call_rows import CallFilter
from gateway.store.calls import IDEMPOTENCY_TTL, LiveIdentity, NewCall, Store
from gateway.store.database import Database, Scope
from gateway.store.once import HeldKey, KeptAnswer
from gateway.store.places.fleet import WORKER_STALE
from tests.support.clock import Clock
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store


def new_call(**changes: object) -> NewCall:
    values: dict[str, object] = {
        "id": new_id("call"),
        "auth_id": "acme",
        "direction": "outbound",
        "room_name": new_id("room"),
        "participant_identity": "caller",
        "from_number": "+15105550123",
        "to_number": "+15551234567",
        "max_duration_ms": 60_000,
        "metadata": {"lead": "882", "note": "ünïcode"},
    }
    return NewCall(**{**values, **changes})  # type: ignore[arg-type]


def queued() -> CallEvent:
    return CallEvent(type="call.queued")


class StoreContract:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    async def store(self, url: str, clock: Clock) -> AsyncIterator[Store]:
        database = await Database.open(url)
        yield Store(database, clock=clock)
        await database.close()

    async def test_the_last_word_of_each_call(self, store: Store) -> None:
        silent, talked, other = [await store.insert_call(new_call(), queued()) for _ in range(3)]
        for call, words in ((talked, ("Hello", "Bye")), (other, ("Hm",))):
            for number, word in enumerate(words):
                turn = Turn(id=f"{call.id}-{number}", response=word)
                told = CallEvent(type="turn", data=turn.wire())
                await store.append(call.id, [told], "worker")
        last = await store.last_turns([silent.id, talked.id, other.id])
        assert {call_id: turn.response for call_id, turn in last.items()} == {
            talked.id: "Bye",
            other.id: "Hm",
        }
        assert await store.last_turns([]) == {}

    async def test_a_call_is_kept_as_it_was_given(self, store: Store) -> None:
        agent = Agent(id="demo", version=3, config=AgentConfig(name="Demo"))
        new = new_call(agent=agent)
        call = await store.insert_call(new, queued())
        assert await store.call(Scope("acme"), new.id) == call
        assert (call.status, call.agent_id, call.agent_version) == ("queued", "demo", 3)
        assert call.metadata == {"lead": "882", "note": "ünïcode"}
        assert (call.auth_id, call.max_duration_ms) == ("acme", 60_000)
        assert await store.call_and_agent(new.id) == (call, agent)

    async def test_the_rooms_of_calls_that_are_over(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.store.call_queries._NAMES_AT_ONCE", 2)
        moment = now()
        calls = [new_call() for _ in range(5)]
        for call in calls:
            await store.insert_call(call, CallEvent(type="call.queued", at=moment))
        data = ended("failed", "dial_failed")
        for call in calls[1:]:
            over = CallEvent(type="call.ended", at=moment, data=data)
            await store.append(call.id, [over], "gateway")
        minute = timedelta(minutes=1)
        rooms = [call.room_name for call in calls[:4]]

        async def found(created_after: datetime, ended_before: datetime) -> list[str]:
            return await store.rooms_of_ended(
                [*rooms, "another"], created_after=created_after, ended_before=ended_before
            )

        assert await found(moment - minute, moment + minute) == sorted(rooms[1:])
        assert await found(moment - minute, moment - minute) == []
        assert await found(moment + minute, moment + minute) == []

    async def test_another_tenant_sees_nothing(self, store: Store) -> None:
        new = new_call(auth_id="acme")
        await store.insert_call(new, queued())
        assert await store.call(Scope("rival"), new.id) is None
        _, total = await store.calls(Scope("rival"), CallFilter(), limit=10, offset=0)
        assert total == 0
        assert await store.call(Scope(None), new.id) is not None

    async def test_one_live_call_per_identity_in_a_room(self, store: Store) -> None:
        first = new_call(room_name="same", participant_identity="one")
        await store.insert_call(first, queued())
        twin = new_call(room_name="same", participant_identity="one")
        with pytest.raises(LiveIdentity) as held:
            await store.insert_call(twin, queued())
        assert held.value.call_id == first.id
        over = CallEvent(type="call.ended", data=ended("failed", "dial_failed"))
        await store.append(first.id, [over], "gateway")
        await store.insert_call(twin, queued())

    async def test_of_many_twins_at_once_one_is_kept(self, store: Store) -> None:
        twins = [new_call(room_name="race", participant_identity="x") for _ in range(12)]
        results = await asyncio.gather(
            *(store.insert_call(twin, queued()) for twin in twins), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, LiveIdentity)]
        assert len(refused) == 11

    async def test_events_move_the_record_and_come_once(self, store: Store) -> None:
        new = new_call()
        await store.insert_call(new, queued())
        dialing = CallEvent(
            type="call.dialing", data={"participantId": "PA_1", "sipCallId": "SCL_1"}
        )
        answered = CallEvent(type="call.answered")
        stored = await store.append(new.id, [dialing, answered], "gateway")
        assert stored is not None
        assert [event.type for event in stored] == ["call.dialing", "call.answered"]
        assert await store.append(new.id, [dialing, answered], "worker") == []
        call = await store.call(Scope(None), new.id)
        assert call is not None
        assert (call.status, call.participant_id, call.sip_call_id) == (
            "in-progress",
            "PA_1",
            "SCL_1",
        )
        assert call.answered_at == answered.at
        assert [event.type for event in await store.events(new.id)] == [
            "call.queued",
            "call.dialing",
            "call.answered",
        ]
        after = (await store.events(new.id))[1].seq
        assert [event.type for event in await store.events(new.id, after=after)] == [
            "call.answered"
        ]
        assert await store.find_live_call(new.room_name, "caller") == new.id

    async def test_events_of_an_unknown_call_are_refused(self, store: Store) -> None:
        assert await store.append("call_nope", [queued()], "worker") is None

    async def test_concurrent_events_are_all_folded(self, store: Store) -> None:
        new = new_call()
        await store.insert_call(new, queued())
        told = [CallEvent(type="turn", data={"id": f"t{n}"}) for n in range(20)]
        told += [CallEvent(type="call.ringing"), CallEvent(type="call.answered")]
        await asyncio.gather(*(store.append(new.id, [event], "worker") for event in told))
        call = await store.call(Scope(None), new.id)
        assert call is not None
        assert call.status == "in-progress"
        assert call.ringing_at is not None
        assert len(await store.events(new.id)) == 23

    async def test_turns_are_in_spoken_order_and_the_newer_telling_wins(self, store: Store) -> None:
        new = new_call()
        await store.insert_call(new, queued())
        greeting = Turn(id="a", response="Hello", response_start_ms=40)
        question = Turn(id="b", transcript="When do you open", start_ms=2_000)
        whole = question.model_copy(update={"response": "At nine", "response_start_ms": 3_100})
        for turn in (question, greeting, whole):
            await store.append(new.id, [CallEvent(type="turn", data=turn.wire())], "worker")
        turns = await store.turns(new.id)
        assert [(turn.transcript, turn.response) for turn in turns] == [
            ("", "Hello"),
            ("When do you open", "At nine"),
        ]

    async def test_pages_are_newest_first_and_filtered(self, store: Store) -> None:
        scope = Scope(new_id("tenant"))
        start = now() - timedelta(hours=1)
        ids = []
        for minute in range(5):
            new = new_call(auth_id=scope.auth_id, direction="inbound" if minute % 2 else "outbound")
            created = CallEvent(type="call.queued", at=start + timedelta(minutes=minute))
            await store.insert_call(new, created)
            ids.append(new.id)
        page, total = await store.calls(scope, CallFilter(), limit=2, offset=1)
        assert ([call.id for call in page], total) == ([ids[3], ids[2]], 5)
        inbound, total = await store.calls(
            scope, CallFilter(direction="inbound"), limit=10, offset=0
        )
        assert ([call.id for call in inbound], total) == ([ids[3], ids[1]], 2)
        since = CallFilter(since=start + timedelta(minutes=3), until=start + timedelta(minutes=4))
        assert [call.id for call in (await store.calls(scope, since, limit=9, offset=0))[0]] == [
            ids[3]
        ]
        assert (await store.calls(scope, CallFilter(statuses=["failed"]), limit=9, offset=0)) == (
            [],
            0,
        )

    async def test_workers_are_live_while_they_beat(self, store: Store, clock: Clock) -> None:
        worker_id = new_id("worker")
        beat = Heartbeat(worker_id=worker_id, agent_name="switchroom", capacity=4, active=1)
        await store.heartbeat(beat)
        await store.heartbeat(beat.model_copy(update={"active": 2}))
        mine = [worker for worker in await store.workers() if worker.worker_id == worker_id]
        assert [worker.active for worker in mine] == [2]
        clock.forward(WORKER_STALE + timedelta(milliseconds=1))
        assert all(worker.worker_id != worker_id for worker in await store.workers())

    async def test_what_mattered_for_a_while_is_swept(self, store: Store, clock: Clock) -> None:
        scope, key = Scope("acme"), new_id("key")
        orphan = (500, "{}")
        assert isinstance(await store.keys.begin(scope, key, "h", orphan=orphan), HeldKey)
        await store.sweep()
        assert isinstance(await store.keys.begin(scope, key, "h", orphan=orphan), KeptAnswer)
        clock.forward(IDEMPOTENCY_TTL + timedelta(seconds=1))
        await store.sweep()
        assert isinstance(await store.keys.begin(scope, key, "h", orphan=orphan), HeldKey)

    async def test_unfinished_calls_are_found(self, store: Store) -> None:
        new = new_call()
        await store.insert_call(new, queued())
        soon = now() + timedelta(seconds=1)
        assert new.id in [call.id for call in await store.unfinished_calls(created_before=soon)]
        past = now() - timedelta(hours=2)
        assert await store.unfinished_calls(created_before=past) == []
        over = CallEvent(type="call.ended", data=ended("canceled", "canceled"))
        await store.append(new.id, [over], "gateway")
        unfinished = await store.unfinished_calls(created_before=soon)
        assert new.id not in [call.id for call in unfinished]

    async def test_opening_twice_migrates_once(self, empty_url: str) -> None:
        new = new_call()
        first = await Database.open(empty_url)
        await Store(first).insert_call(new, queued())
        second = await Database.open(empty_url)
        assert await Store(second).call(Scope(None), new.id) is not None
        for database in (first, second):
            await database.close()


class TestSqlite(OnSqlite, StoreContract):
    pass


class TestPostgres(OnPostgres, StoreContract):
    async def test_gateways_may_start_together(self, empty_url: str) -> None:
        opened = await asyncio.gather(*(Database.open(empty_url) for _ in range(3)))
        await asyncio.gather(*(database.ping() for database in opened))
        await asyncio.gather(*(database.close() for database in opened))


async def test_a_long_history_slows_no_call_down(tmp_path: Path) -> None:
    """Queries for every call, and periodic ones, use an index, as SQLite's query plans show."""
    path = tmp_path / "calls.db"
    database = await Database.open(f"sqlite:///{path}")
    store, asked = Store(database), list[tuple[str, Any]]()

    def note(_: object, __: object, sql: str, values: Any, *___: object) -> None:
        asked.append((sql, values))

    call = await store.insert_call(new_call(), queued())
    event.listen(database._engine.sync_engine, "before_cursor_execute", note)
    await store.append(call.id, [CallEvent(type="call.ringing")], "gateway")
    await store.call(Scope("acme"), call.id)
    await store.call_and_agent(call.id)
    await store.events(call.id, types=["turn"])
    await store.load("acme", "switchroom")
    await store.find_live_call(call.room_name, "caller")
    await store.unfinished_calls(created_before=now())
    await store.rooms_of_ended([call.room_name, "b"], created_after=now(), ended_before=now())
    await database.close()

    with contextlib.closing(sqlite3.connect(path)) as raw:
        plans = {
            sql: [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
            for sql, values in asked
            if not sql.startswith("BEGIN")
        }
    assert len(plans) >= 10
    # Without these indexes, a query by age would read every call ever made.
    for index in ("ix_calls_live_created_at", "ix_calls_room_name_created_at"):
        assert any(index in step for plan in plans.values() for step in plan)
    # Scans of the workers, or of an index of the unfinished calls alone, are short.
    short = ("SCAN calls USING INDEX ix_calls_live_", "SCAN workers")
    steps = {
        sql: [step for step in plan if not step.startswith(short)] for sql, plan in plans.items()
    }
    assert not [sql for sql, plan in steps.items() if any(step.startswith("SCAN") for step in plan)]


async def test_an_unreachable_database_is_unavailable() -> None:
    with pytest.raises(Unavailable) as refusal:
        await Database.open("postgresql://nobody@127.0.0.1:1/none")
    assert refusal.value.code == "STORE_UNAVAILABLE"


@pytest.mark.parametrize(
    "url", ["mysql://localhost/x", "", "nonsense", "postgresql://u:s3cret@h:port/x"]
)
async def test_a_foreign_database_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="DATABASE_URL") as refusal:
        await Database.open(url)
    assert "s3cret" not in str(refusal.value)
