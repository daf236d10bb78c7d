"""Tests of gateway.calls.timeline.Tail: each event of another gateway is reported once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from core.models import CallEvent, new_id, now
from gateway.calls import timeline
from gateway.calls.timeline import Tail
from gateway.store.call_rows import EVENTS_TABLE
from gateway.store.calls import NewCall, Store
from gateway.store.database import Database
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store


class Table:
    """The events that are visible so far: number → call."""

    def __init__(self, visible: dict[int, str]) -> None:
        self.visible = visible
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    async def newest_event(self) -> int:
        return max(self.visible, default=0)

    async def events_since(self, seq: int, among: Sequence[int]) -> list[tuple[int, str]]:
        self.asked.append((seq, tuple(among)))
        return [(n, call) for n, call in self.visible.items() if n > seq or n in among]


async def test_what_becomes_visible_late_is_told_and_nothing_twice() -> None:
    table = Table({7: "old"})
    time = 0.0
    end = Tail(table, clock=lambda: time)
    assert await end.read() == {"old"}  # the first read includes the newest events
    assert await end.read() == set()
    table.visible |= {10: "c", 12: "d"}  # 8, 9 and 11 are not committed yet
    assert await end.read() == {"c", "d"}
    table.visible |= {9: "a"}
    assert await end.read() == {"a"}
    assert await end.read() == set()
    time = timeline._MISSING_S + 1
    await end.read()
    await end.read()
    assert table.asked[-1] == (12, ())  # 8 and 11 will never be committed


async def test_what_this_gateway_wrote_itself_is_not_told() -> None:
    table = Table({})
    end = Tail(table)
    assert await end.read() == set()
    table.visible |= {1: "mine", 2: "theirs"}
    end.known([1])
    assert await end.read() == {"theirs"}
    assert await end.read() == set()
    assert not end._known


async def test_a_jump_in_the_numbers_is_not_looked_through() -> None:
    table = Table({1: "a"})
    end = Tail(table)
    await end.read()
    table.visible |= {10**12: "b"}
    assert await end.read() == {"b"}
    await end.read()
    assert len(table.asked[-1][1]) < timeline._BACK


class Contract:
    @pytest.fixture
    async def database(self, url: str) -> AsyncIterator[Database]:
        opened = await Database.open(url)
        yield opened
        await opened.close()

    async def test_another_gateways_events(self, database: Database) -> None:
        store = Store(database)
        first, second = await new_call(store), await new_call(store)
        end = Tail(store)
        assert await end.read() == {first, second}
        await store.append(second, [CallEvent(type="call.ringing")], "gateway")
        assert await end.read() == {second}
        assert await end.read() == set()


class TestSqlite(OnSqlite, Contract):
    pass


class TestPostgres(OnPostgres, Contract):
    async def test_an_event_that_is_committed_after_a_later_one(self, database: Database) -> None:
        store = Store(database)
        slow, quick = await new_call(store), await new_call(store)
        end = Tail(store)
        await end.read()
        async with database.write() as connection:
            await connection.execute(
                EVENTS_TABLE.insert(),
                {
                    "id": new_id("evt"),
                    "call_id": slow,
                    "auth_id": None,
                    "type": "turn",
                    "at": now(),
                    "source": "worker",
                    "data": {},
                },
            )
            await store.append(quick, [CallEvent(type="call.ringing")], "gateway")
            assert await end.read() == {quick}
        assert await end.read() == {slow}


async def new_call(store: Store) -> str:
    new = NewCall(
        id=new_id("call"),
        auth_id=None,
        direction="outbound",
        room_name=new_id("room"),
        participant_identity="caller",
        from_number="+15105550123",
        to_number="+15551234567",
        max_duration_ms=60_000,
        metadata={},
    )
    return (await store.insert_call(new, CallEvent(type="call.queued"))).id
