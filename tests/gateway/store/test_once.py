"""Idempotency keys of requests that died: they are not run again, and their call is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update

from core.errors import Unavailable
from core.models import now
from gateway.store.calls import Store
from gateway.store.database import Database, Scope
from gateway.store.once import HELD, LEASE, HeldKey, IdempotencyKeys, KeptAnswer
from gateway.store.tables import IdempotencyRow
from tests.gateway.store.test_calls import new_call, queued
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = [pytest.mark.store, pytest.mark.attack]

ACME = Scope("acme")
ORPHAN = (500, '{"code": "OUTCOME_UNKNOWN"}')
UNKNOWN = KeptAnswer("h1", *ORPHAN, call_id=None)
MOMENT = timedelta(milliseconds=1)


class Clock:
    def __init__(self) -> None:
        self.time = now()

    def __call__(self) -> datetime:
        return self.time


class Rig:
    """Two gateways with one clock: ``keys`` runs the request of key "k", ``other`` its retries."""

    def __init__(self, database: Database) -> None:
        self.database, self.clock = database, Clock()
        self.store = Store(database, clock=self.clock)
        self.keys = self.store.keys
        self.other = IdempotencyKeys(database, self.clock)

    async def begin(
        self, key: str = "k", request_hash: str = "h1", scope: Scope = ACME
    ) -> HeldKey | KeptAnswer:
        return await self.other.begin(scope, key, request_hash, orphan=ORPHAN)

    async def held(self) -> HeldKey:
        held = await self.keys.begin(ACME, "k", "h1", orphan=ORPHAN)
        assert isinstance(held, HeldKey)
        return held

    async def died(self) -> HeldKey:
        """Return the key of a request, after its lease has lapsed."""
        held = await self.held()
        self.clock.time += LEASE
        return held


class Contract:
    @pytest.fixture
    async def rig(self, url: str) -> AsyncIterator[Rig]:
        database = await Database.open(url)
        yield Rig(database)
        await database.close()

    async def test_a_key_is_taken_once(self, rig: Rig) -> None:
        held = await rig.held()
        running = KeptAnswer("h1", None, None, None)
        assert await rig.begin(request_hash="h2") == running
        assert await rig.other.look(ACME, "k") == running
        assert isinstance(await rig.begin(scope=Scope("rival")), HeldKey)
        await rig.keys.finish(held, 200, '{"a": 1}')
        assert await rig.begin() == KeptAnswer("h1", 200, '{"a": 1}', None)
        await rig.keys.forget(held)
        assert await rig.other.look(ACME, "k") is None
        assert isinstance(await rig.begin(), HeldKey)

    async def test_of_concurrent_twins_one_gets_the_key(self, rig: Rig) -> None:
        taken = await asyncio.gather(*(rig.begin() for _ in range(10)))
        assert sum(isinstance(answer, HeldKey) for answer in taken) == 1

    async def test_a_lease_counts_to_its_end(self, rig: Rig) -> None:
        await rig.held()
        rig.clock.time += LEASE - MOMENT
        assert await rig.begin() == KeptAnswer("h1", None, None, None)
        rig.clock.time += MOMENT
        assert await rig.other.look(ACME, "k") is None
        assert await rig.begin() == UNKNOWN

    async def test_whoever_asks_hears_the_same(self, rig: Rig) -> None:
        await rig.died()
        answers = await asyncio.gather(*(rig.begin() for _ in range(10)))
        assert answers == [UNKNOWN] * 10
        assert await rig.other.look(ACME, "k") == UNKNOWN
        rig.clock.time += 20 * LEASE
        assert await rig.begin() == UNKNOWN

    async def test_another_tenants_key_is_not_touched(self, rig: Rig) -> None:
        await rig.died()
        assert isinstance(await rig.begin(scope=Scope("rival")), HeldKey)
        assert isinstance(await rig.begin(scope=Scope(None)), HeldKey)
        assert await rig.begin() == UNKNOWN

    async def test_a_renewed_lease_holds(self, rig: Rig) -> None:
        held = await rig.held()
        for _ in range(5):
            rig.clock.time += LEASE - MOMENT
            assert await rig.keys.renew(held)
        assert await rig.begin() == KeptAnswer("h1", None, None, None)

    async def test_a_lease_that_was_lost_is_not_renewed(self, rig: Rig) -> None:
        held = await rig.died()
        await rig.begin()
        assert not await rig.keys.renew(held)
        assert await rig.begin() == UNKNOWN

    async def test_the_call_of_a_request_that_died_is_known(self, rig: Rig) -> None:
        HELD.set(await rig.held())
        call = await rig.store.insert_call(new_call(), queued())
        assert await rig.begin() == KeptAnswer("h1", None, None, call.id)
        rig.clock.time += LEASE
        assert await rig.begin() == KeptAnswer("h1", *ORPHAN, call_id=call.id)

    async def test_one_taken_for_dead_makes_no_call(self, rig: Rig) -> None:
        """Its gateway was suspended. A retry was told of no call, so there must be none."""
        HELD.set(await rig.died())
        await rig.begin()
        new = new_call()
        with pytest.raises(Unavailable):
            await rig.store.insert_call(new, queued())
        assert await rig.store.call(Scope(None), new.id) is None

    async def test_one_that_was_only_slow_makes_its_call(self, rig: Rig) -> None:
        """There was no retry yet, so the request still holds its key."""
        HELD.set(await rig.died())
        call = await rig.store.insert_call(new_call(), queued())
        assert await rig.begin() == KeptAnswer("h1", *ORPHAN, call_id=call.id)

    async def test_what_comes_out_late_is_known_better(self, rig: Rig) -> None:
        held = await rig.died()
        assert await rig.begin() == UNKNOWN
        await rig.keys.finish(held, 200, "{}")
        assert await rig.begin() == KeptAnswer("h1", 200, "{}", None)

    @pytest.mark.parametrize("late", ["finish", "forget", "renew", "call"])
    async def test_who_lost_a_key_leaves_the_next_ones_alone(self, rig: Rig, late: str) -> None:
        lost = await rig.held()
        await rig.keys.forget(lost)
        assert isinstance(await rig.begin(request_hash="h2"), HeldKey)
        match late:
            case "finish":
                await rig.keys.finish(lost, 200, "{}")
            case "forget":
                await rig.keys.forget(lost)
            case "renew":
                assert not await rig.keys.renew(lost)
            case "call":
                HELD.set(lost)
                with pytest.raises(Unavailable):
                    await rig.store.insert_call(new_call(), queued())
        assert await rig.begin(request_hash="h2") == KeptAnswer("h2", None, None, None)

    async def test_one_from_before_there_were_leases(self, rig: Rig) -> None:
        await rig.held()
        async with rig.database.write() as connection:
            await connection.execute(update(IdempotencyRow).values(leased_until=None))
        assert await rig.begin() == UNKNOWN


class TestSqlite(OnSqlite, Contract):
    pass


class TestPostgres(OnPostgres, Contract):
    pass
