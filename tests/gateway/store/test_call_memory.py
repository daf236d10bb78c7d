"""What is remembered of a call's tools: sealed, bounded, never on the timeline, gone at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select, update

from core.events import Source, ended
from core.models import CallEvent
from core.tools.memory import MOST_RESULT, TOOL_ANSWERED, TOOL_CALLED
from gateway.store.calls import Store
from gateway.store.credentials import Unreadable, Vault
from gateway.store.database import Database
from gateway.store.lost.call_memory import MOST_BYTES, MOST_RUNS, CallMemoryRow, reseal_call_memory
from gateway.store.tables import CallRow
from tests.gateway.store.test_calls import new_call, queued
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = [pytest.mark.store, pytest.mark.attack]

PATIENT, RESULT = "Anna Karenina", "she has an appointment on Friday"


def a_key() -> str:
    return Fernet.generate_key().decode()


def called(run: str = "call_1", **changes: Any) -> CallEvent:
    data = {"id": run, "name": "find_patient", "arguments": {"name": PATIENT}, "atMs": 1200}
    return CallEvent(type=TOOL_CALLED, data={**data, "turn": "turn_1", **changes})


def answered(run: str = "call_1", **changes: Any) -> CallEvent:
    data = {"id": run, "ok": True, "result": RESULT, "atMs": 1500}
    return CallEvent(type=TOOL_ANSWERED, data={**data, **changes})


def over() -> CallEvent:
    return CallEvent(type="call.ended", data=ended("completed", "user_hangup"))


def lost(epoch: int) -> CallEvent:
    return CallEvent(type="agent.lost", data={"epoch": epoch, "why": "killed"})


async def told(store: Store, call_id: str, *events: CallEvent, epoch: int = 0) -> None:
    await store.append(call_id, events, "worker", epoch=epoch)


async def rows(database: Database) -> list[Any]:
    async with database.read() as connection:
        return [*(await connection.execute(select(CallMemoryRow.__table__))).mappings()]


class Contract:
    @pytest.fixture
    async def database(self, url: str) -> AsyncIterator[Database]:
        database = await Database.open(url)
        yield database
        await database.close()

    @pytest.fixture
    def store(self, database: Database) -> Store:
        return Store(database, vault=Vault([a_key()]))

    async def test_it_is_kept_sealed_and_off_the_timeline(
        self, database: Database, store: Store
    ) -> None:
        call, other = [await store.insert_call(new_call(), queued()) for _ in range(2)]
        await told(store, call.id, called(), CallEvent(type="agent.ready"), answered())
        await told(store, call.id, called("call_2", name="book", arguments=None, turn=None))
        first, second = await store.tools(call.id)
        assert first.called.wire() == called().data
        assert first.answered is not None and first.answered.wire() == answered().data
        assert (second.called.name, second.called.arguments) == ("book", None)
        assert second.answered is None
        assert await store.tools(other.id) == []
        kept = str(await rows(database))
        assert not [text for text in (PATIENT, RESULT, "find_patient") if text in kept]
        assert [event.type for event in await store.events(call.id)] == [
            "call.queued",
            "agent.ready",
        ]

    async def test_an_event_that_comes_twice_changes_nothing(self, store: Store) -> None:
        call = await store.insert_call(new_call(), queued())
        await told(store, call.id, called(), answered())
        await told(store, call.id, called(name="other"), answered(result="other"))
        (run,) = await store.tools(call.id)
        assert (run.called.name, run.answered and run.answered.result) == ("find_patient", RESULT)
        await told(store, call.id, answered("call_nobody_knows"))
        assert len(await store.tools(call.id)) == 1

    async def test_it_goes_with_the_call(self, database: Database, store: Store) -> None:
        call, other = [await store.insert_call(new_call(), queued()) for _ in range(2)]
        for each in (call, other):
            await told(store, each.id, called(), answered())
        await told(store, call.id, called("call_2"), over(), called("call_3"))
        await told(store, call.id, called("call_4"), answered("call_4"))
        assert {row["call_id"] for row in await rows(database)} == {other.id}

    async def test_only_present_and_former_agents_are_heard(self, store: Store) -> None:
        call = await store.insert_call(new_call(), queued())
        await told(store, call.id, called("early"), epoch=1)
        await store.append(call.id, [lost(0)], "gateway")
        await told(store, call.id, called("late"), answered("late"), epoch=0)
        await told(store, call.id, called("present"), epoch=1)
        sources: tuple[Source, ...] = ("gateway", "livekit", "worker")
        for source in sources:
            await store.append(call.id, [called("nobodys")], source)
        assert [run.called.id for run in await store.tools(call.id)] == ["late", "present"]

    async def test_the_oldest_are_forgotten(self, database: Database, store: Store) -> None:
        call = await store.insert_call(new_call(), queued())
        for number in range(0, MOST_RUNS + 5, 5):
            await told(store, call.id, *(called(f"call_{number + i}") for i in range(5)))
        runs = [run.called.id for run in await store.tools(call.id)]
        assert runs == [f"call_{number}" for number in range(5, MOST_RUNS + 5)]
        for number in range(60):
            long = answered(f"big_{number}", result="ü" * MOST_RESULT)
            await told(store, call.id, called(f"big_{number}"), long)
        kept = await rows(database)
        assert sum(len(row["called"]) + len(row["answered"] or "") for row in kept) <= MOST_BYTES
        last = (await store.tools(call.id))[-1]
        assert last.called.id == "big_59" and last.answered is not None

    @pytest.mark.parametrize(
        "event",
        [
            called(id=""),
            called(id="x" * 129),
            called(id=7),
            called(arguments="all"),
            called(arguments={"a": "x" * 8192}),
            called(atMs=-1),
            called(atMs=2**31),
            answered(result="x" * (MOST_RESULT + 1)),
            answered(ok="maybe"),
            CallEvent(type=TOOL_CALLED),
            CallEvent(type="memory.of_nothing", data={"id": "a"}),
            CallEvent(type="memory.x"),
        ],
    )
    async def test_what_is_no_memory_is_nowhere(self, store: Store, event: CallEvent) -> None:
        call = await store.insert_call(new_call(), queued())
        await told(store, call.id, event)
        assert await store.tools(call.id) == []
        assert len(await store.events(call.id)) == 1

    async def test_what_is_not_asked_for_is_not_kept(self, database: Database) -> None:
        vault = Vault([a_key()])
        store = Store(database, vault=vault)
        call = await store.insert_call(new_call(), queued())
        await told(store, call.id, called(more="x" * 100_000))
        (row,) = await rows(database)
        assert "more" not in vault.open(row["called"])

    async def test_strange_texts_are_kept(self, store: Store) -> None:
        call = await store.insert_call(new_call(), queued())
        strange = {"a\x00": "\x00\ud800'; DROP TABLE calls; --", "b": [{"c": 1e308}]}
        await told(store, call.id, called(arguments=strange), answered(result="\x00\ud800"))
        (run,) = await store.tools(call.id)
        assert run.called.arguments == strange

    async def test_with_another_key_there_is_none(self, database: Database) -> None:
        old, new = a_key(), a_key()
        store = Store(database, vault=Vault([old]))
        call = await store.insert_call(new_call(), queued())
        await told(store, call.id, called(), answered(), called("call_2"))
        assert await Store(database, vault=Vault([new])).tools(call.id) == []
        with pytest.raises(Unreadable):
            await reseal_call_memory(database, Vault([new]))
        assert await reseal_call_memory(database, Vault([new, old])) == 2
        assert len(await Store(database, vault=Vault([new])).tools(call.id)) == 2

    async def test_without_a_key_nothing_is_kept(self, database: Database) -> None:
        store = Store(database)
        call = await store.insert_call(new_call(), queued())
        await told(store, call.id, called(), answered())
        assert (await rows(database), await store.tools(call.id)) == ([], [])
        assert len(await store.events(call.id)) == 1

    async def test_what_an_older_gateway_leaves_is_swept(
        self, database: Database, store: Store
    ) -> None:
        call, other = [await store.insert_call(new_call(), queued()) for _ in range(2)]
        for each in (call, other):
            await told(store, each.id, called())
        async with database.write() as connection:
            ends = update(CallRow).where(CallRow.id == call.id).values(ended_at=call.created_at)
            await connection.execute(ends)
        await store.sweep()
        assert [row["call_id"] for row in await rows(database)] == [other.id]


class TestSqlite(OnSqlite, Contract):
    pass


class TestPostgres(OnPostgres, Contract):
    pass
