"""Tasks: leases, attempts, and Twilio's facts about them, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from core.errors import Unavailable
from core.events import ended
from core.models import Agent, AgentConfig, CallEvent, new_id
from gateway.store.calls import NewCall, Store
from gateway.store.database import Database, Scope
from gateway.store.once import HELD, HeldKey
from gateway.store.streams.tasks import LEASE, Retry, Task, TaskStore, Wanted
from tests.support.clock import Clock
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store

ACME, SID = Scope("acme"), "CA" + "1" * 32


class Contract:
    @pytest.fixture
    async def database(self, url: str) -> AsyncIterator[Database]:
        database = await Database.open(url)
        yield database
        await database.close()

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def tasks(self, database: Database, clock: Clock) -> TaskStore:
        return TaskStore(database, clock)

    async def added(self, tasks: TaskStore, clock: Clock, **changes: Any) -> Task:
        values: dict[str, Any] = {
            "id": new_id("task"),
            "auth_id": "acme",
            "agent_id": "greeter",
            "phone_number_id": "num_1",
            "credential_id": "cred_1",
            "from_number": "+15105550123",
            "to_number": "+15551234567",
            "wanted": Wanted(goal="Book a table", metadata={"lead": 882}),
            "created_at": clock(),
            "until": clock() + timedelta(hours=1),
            "due_at": clock(),
        }
        task = Task(**{**values, **changes})
        await tasks.add(task)
        return task

    async def test_what_was_added_is_found_by_its_tenant_only(
        self, tasks: TaskStore, clock: Clock
    ) -> None:
        task = await self.added(tasks, clock, wanted=Wanted(retry=Retry(max_attempts=3)))
        assert await tasks.find(ACME, task.id) == task
        assert await tasks.find(Scope("rival"), task.id) is None
        older = await self.added(tasks, clock, created_at=clock() - timedelta(minutes=1))
        await self.added(tasks, clock, agent_id="other")
        found, total = await tasks.page(ACME, "greeter", None, limit=1, offset=0)
        assert ([each.id for each in found], total) == ([task.id], 2)
        assert await tasks.cancel(older.id) is not None
        found, total = await tasks.page(ACME, "greeter", "canceled", limit=9, offset=0)
        assert ([each.id for each in found], total) == ([older.id], 1)
        assert await tasks.page(Scope("rival"), "greeter", None, limit=9, offset=0) == ([], 0)

    async def test_a_task_is_leased_once(self, tasks: TaskStore, clock: Clock) -> None:
        expected = {(await self.added(tasks, clock)).id for _ in range(20)}
        claimed = await asyncio.gather(*(tasks.claim(7) for _ in range(8)))
        ids = [task.id for _, found in claimed for task in found]
        for _ in range(3):
            ids += [task.id for task in (await tasks.claim(20))[1]]
        assert (len(ids), set(ids)) == (20, expected)

    async def test_a_lease_ends(self, tasks: TaskStore, clock: Clock) -> None:
        task = await self.added(tasks, clock)
        first, _ = await tasks.claim(5)
        clock.forward(LEASE + timedelta(seconds=1))
        second, (again,) = await tasks.claim(5)
        assert again.id == task.id
        # The gateway that was suspended finds that the task is not its own any more.
        assert await tasks.begin(task, first, "call_1") is None
        assert await tasks.keep(task, first, due_at=None) is None
        begun = await tasks.begin(task, second, "call_2")
        assert begun is not None
        assert (begun.status, begun.attempts, begun.calls) == ("in-progress", 1, ["call_2"])
        assert begun.asked_at is not None
        assert await tasks.begin(begun, second, "call_3") is None  # one attempt at a time

    async def test_it_is_due_when_its_time_has_come(self, tasks: TaskStore, clock: Clock) -> None:
        task = await self.added(tasks, clock)
        lease, _ = await tasks.claim(5)
        await tasks.keep(task, lease, due_at=clock() + timedelta(minutes=5))
        assert (await tasks.claim(5))[1] == []
        clock.forward(timedelta(minutes=6))
        lease, (again,) = await tasks.claim(5)
        assert await tasks.keep(again, lease, due_at=None) is not None
        clock.forward(timedelta(days=1))
        assert (await tasks.claim(5))[1] == []

    async def test_it_is_due_when_its_call_has_ended(
        self, tasks: TaskStore, clock: Clock, database: Database
    ) -> None:
        store = Store(database)
        new = NewCall(
            id=new_id("call"),
            auth_id="acme",
            direction="outbound",
            type="stream",
            room_name="r",
            participant_identity="caller",
            from_number=None,
            to_number=None,
            max_duration_ms=60_000,
            agent=Agent(id="greeter", version=1, config=AgentConfig(name="Greeter")),
            metadata={},
        )
        await store.insert_call(new, CallEvent(type="call.queued"))
        task = await self.added(tasks, clock)
        lease, _ = await tasks.claim(5)
        begun = await tasks.begin(task, lease, new.id)
        assert begun is not None
        later = clock() + timedelta(minutes=5)
        await tasks.keep(begun, lease, due_at=later)
        assert (await tasks.claim(5))[1] == []
        over = CallEvent(type="call.ended", data=ended("busy", "dial_busy"))
        await store.append(new.id, [over], "gateway")
        lease, (again,) = await tasks.claim(5)
        # It rests: the end of its call would make it due again and again.
        await tasks.keep(again, lease, due_at=later, leased_until=later)
        assert (await tasks.claim(5))[1] == []

    async def test_twilios_facts_only_move_forward(self, tasks: TaskStore, clock: Clock) -> None:
        task = await self.added(tasks, clock)
        lease, _ = await tasks.claim(5)
        await tasks.begin(task, lease, "call_1")
        told = await tasks.learn(task.id, "call_1", SID, sequence=1, status="ringing")
        assert told is not None
        assert (told.call_sid, told.sequence, told.call_status) == (SID, 1, "ringing")
        for sequence in (0, 1):  # late, and repeated
            assert await tasks.learn(task.id, "call_1", SID, sequence=sequence) is None
        # Another call's.
        assert await tasks.learn(task.id, "call_1", "CA2", sequence=9) is None
        assert await tasks.learn(task.id, "call_0", SID, sequence=9) is None
        # A fact without a number.
        assert await tasks.learn(task.id, "call_1", SID, status="completed") is not None
        assert await tasks.known([SID, "CA2"]) == {SID}

    async def test_concurrent_callbacks_count_once(self, tasks: TaskStore, clock: Clock) -> None:
        task = await self.added(tasks, clock)
        lease, _ = await tasks.claim(5)
        await tasks.begin(task, lease, "call_1")
        told = await asyncio.gather(
            *(tasks.learn(task.id, "call_1", SID, sequence=2, status="busy") for _ in range(12))
        )
        assert sum(each is not None for each in told) == 1

    async def test_canceled_under_a_step(self, tasks: TaskStore, clock: Clock) -> None:
        task = await self.added(tasks, clock)
        lease, _ = await tasks.claim(5)
        canceled = await tasks.cancel(task.id)
        assert canceled is not None and canceled.status == "canceled"
        assert await tasks.cancel(task.id) is None
        assert await tasks.begin(task, lease, "call_1") is None
        kept = await tasks.keep(task, lease, status="failed", failure="EXPIRED", due_at=None)
        assert kept is not None and kept.status == "canceled"
        # It is looked at once more: there might have been a phone that rings.
        _, (again,) = await tasks.claim(5)
        assert again.id == task.id

    async def test_a_request_that_lost_its_key_adds_nothing(
        self, tasks: TaskStore, clock: Clock
    ) -> None:
        token = HELD.set(HeldKey("acme", "key", "req_lost"))
        try:
            with pytest.raises(Unavailable):
                await self.added(tasks, clock)
        finally:
            HELD.reset(token)
        assert await tasks.page(ACME, "greeter", None, limit=9, offset=0) == ([], 0)


class TestSqlite(OnSqlite, Contract):
    pass


class TestPostgres(OnPostgres, Contract):
    pass
