"""Gateways adopt the calls of one that is gone, each once, whatever their clocks say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from core.events import ended
from core.models import CallEvent, new_id
from gateway.calls.recovery.succession import Succession
from gateway.store.call_status import Call
from gateway.store.calls import NewCall, Store
from gateway.store.database import Database
from gateway.store.gateways.gateways import Gateways
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store


@dataclass
class One:
    """A gateway whose clock the test moves."""

    database: Database
    store: Store
    time: float = 0.0
    adopted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        gateways = Gateways(self.database, self.store.us)
        self.succession = Succession(gateways, clock=lambda: self.time)
        self.succession.adopt = self._adopt

    async def _adopt(self, call: Call) -> None:
        self.adopted.append(call.id)

    async def call(self) -> str:
        """Insert a call, which this gateway follows."""
        new = NewCall(
            id=new_id("call"),
            auth_id=None,
            direction="outbound",
            room_name=new_id("room"),
            participant_identity="phone",
            from_number=None,
            to_number=None,
            max_duration_ms=60_000,
            metadata={},
        )
        await self.store.insert_call(new, CallEvent(type="call.queued"))
        return new.id

    async def rounds(self, seconds: float, *others: One) -> None:
        """Pass the time, with a round a second here and at the others."""
        for _ in range(round(seconds)):
            for each in (self, *others):
                each.time += 1.0
                await each.succession.round()


class Contract:
    @pytest.fixture
    async def fleet(self, url: str) -> AsyncIterator[list[One]]:
        databases = [await Database.open(url) for _ in range(3)]
        fleet = [One(database, Store(database)) for database in databases]
        for one in fleet:
            await one.succession.begin()
        yield fleet
        for database in databases:
            await database.close()

    async def test_one_that_dies_is_succeeded_once(self, fleet: list[One]) -> None:
        dead, first, second = fleet
        calls = [await dead.call() for _ in range(5)]
        kept = await first.call()
        await first.rounds(3, dead, second)
        assert first.adopted == second.adopted == []
        await first.rounds(3, second)
        assert first.adopted == second.adopted == []  # it may only be late
        await first.rounds(2, second)
        assert sorted(first.adopted + second.adopted) == sorted(calls)
        await first.rounds(10, second)
        assert len(first.adopted + second.adopted) == 5
        assert kept not in second.adopted

    async def test_both_at_the_same_moment(self, fleet: list[One]) -> None:
        dead, first, second = fleet
        calls = [await dead.call() for _ in range(20)]
        await first.rounds(1, second)
        for each in (first, second):
            each.time += 4.0
        await asyncio.gather(first.succession.round(), second.succession.round())
        await first.rounds(2, second)
        assert sorted(first.adopted + second.adopted) == sorted(calls)

    async def test_one_that_stops_is_succeeded_at_once(self, fleet: list[One]) -> None:
        stopped, first, second = fleet
        call_id = await stopped.call()
        await first.rounds(1, second)
        await stopped.succession.leave()
        await first.rounds(1, second)
        assert first.adopted == [call_id]

    async def test_answered_and_ended_calls_need_no_gateway(self, fleet: list[One]) -> None:
        dead, first, _ = fleet
        answered, over = await dead.call(), await dead.call()
        await dead.store.append(answered, [CallEvent(type="call.answered")], "worker")
        end = CallEvent(type="call.ended", data=ended("failed", "dial_failed"))
        await dead.store.append(over, [end], "gateway")
        await dead.succession.leave()
        await first.rounds(6)
        assert first.adopted == []

    async def test_the_adopter_dies_too(self, fleet: list[One]) -> None:
        dead, first, second = fleet
        call_id = await dead.call()
        await dead.succession.leave()
        await first.rounds(1)
        assert first.adopted == [call_id]
        await second.rounds(5)
        assert second.adopted == [call_id]

    async def test_one_that_was_frozen_is_a_gateway_again(self, fleet: list[One]) -> None:
        frozen, first, _ = fleet
        lost = await frozen.call()
        await first.rounds(6)
        assert first.adopted == [lost]
        await first.rounds(1, frozen)
        call_id = await frozen.call()
        await first.rounds(6, frozen)
        assert first.adopted == [lost]
        await first.rounds(6)
        assert first.adopted == [lost, call_id]


class TestSqlite(OnSqlite, Contract):
    pass


class TestPostgres(OnPostgres, Contract):
    pass
