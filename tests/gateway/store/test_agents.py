"""Agents, their versions and their numbers: one contract on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from sqlalchemy import func, select

from core.models import AgentConfig, CallEvent, CustomTool, PhoneNumber, new_id, now
from gateway.store.agents import AgentRecord, AgentStore
from gateway.store.calls import NewCall, Store
from gateway.store.database import Database, Scope
from gateway.store.numbers import NumberStore
from gateway.store.tables import AgentVersionRow
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store

ACME, RIVAL, OPERATOR = Scope("acme"), Scope("rival"), Scope(None)


def named(name: str) -> AgentConfig:
    return AgentConfig(name=name)


def always(config: AgentConfig) -> Callable[[AgentConfig], AgentConfig]:
    return lambda _: config


def count_on(before: AgentConfig) -> AgentConfig:
    return before.model_copy(update={"description": str(int(before.description or 0) + 1)})


@dataclass(frozen=True)
class Stores:
    database: Database
    agents: AgentStore
    numbers: NumberStore

    async def made(self, scope: Scope = ACME, name: str = "One") -> AgentRecord:
        return await self.agents.create(scope, named(name))

    async def number(self, agent: AgentRecord | None = None) -> PhoneNumber:
        number = PhoneNumber(
            id=new_id("num"),
            auth_id="acme",
            phone_number=f"+1{int(new_id('n')[2:12], 16):012}",
            country="US",
            provider="sip",
            direction="both",
            status="active",
            agent_id=agent.id if agent else None,
            bound_at=now() if agent else None,
            created_at=now(),
        )
        await self.numbers.insert(number)
        return number

    async def rows(self, agent_id: str) -> int:
        query = select(func.count()).where(AgentVersionRow.agent_id == agent_id)
        async with self.database.read() as connection:
            return await connection.scalar(query) or 0


class AgentContract:
    @pytest.fixture
    async def stores(self, url: str) -> AsyncIterator[Stores]:
        database = await Database.open(url)
        yield Stores(database, AgentStore(database), NumberStore(database))
        await database.close()

    async def test_an_agent_is_kept_as_it_was_given(self, stores: Stores) -> None:
        tool = CustomTool(
            name="book",
            description="ünï",
            url="http://x/y?z=1",
            parameters={"type": "object", "properties": {"n": {"type": "null", "default": None}}},
        )
        config = AgentConfig(
            name="One", begin_message="", voice="v", voice_speed=1.25, custom_tools=[tool]
        )
        made = await stores.agents.create(ACME, config)
        assert (made.version, made.auth_id, made.config) == (1, "acme", config)
        assert made.created_at == made.updated_at
        assert await stores.agents.get(ACME, made.id) == made
        found = await stores.agents.version(ACME, made.id, 1)
        assert found == made.agent

    async def test_another_tenant_sees_nothing(self, stores: Stores) -> None:
        made = await stores.made()
        await stores.made(OPERATOR)
        agents = stores.agents
        assert await agents.get(RIVAL, made.id) is None
        assert await agents.version(RIVAL, made.id, 1) is None
        assert await agents.versions(RIVAL, made.id, limit=9, offset=0) == ([], 0)
        assert await agents.page(RIVAL, limit=9, offset=0) == ([], 0)
        assert await agents.change(RIVAL, made.id, lambda _: named("Theirs")) is None
        assert await agents.delete(RIVAL, made.id) is None
        assert await agents.get(ACME, made.id) == made
        _, seen = await agents.page(OPERATOR, limit=9, offset=0)
        assert seen == 2

    async def test_versions_never_change(self, stores: Stores) -> None:
        made = await stores.made(name="v1")
        for number in range(2, 6):
            config = named(f"v{number}")
            changed = await stores.agents.change(ACME, made.id, always(config))
            assert changed is not None
            assert (changed.version, changed.config.name) == (number, f"v{number}")
            assert changed.created_at == made.created_at
            assert changed.updated_at >= made.updated_at
        versions, total = await stores.agents.versions(ACME, made.id, limit=3, offset=0)
        assert [(one.version, one.config.name) for one in versions] == [
            (5, "v5"),
            (4, "v4"),
            (3, "v3"),
        ]
        assert total == 5
        rest, _ = await stores.agents.versions(ACME, made.id, limit=3, offset=3)
        assert [one.version for one in rest] == [2, 1]
        first = await stores.agents.version(ACME, made.id, 1)
        assert first is not None and first.config == made.config
        assert await stores.agents.version(ACME, made.id, 6) is None

    async def test_what_changes_nothing_makes_no_version(self, stores: Stores) -> None:
        made = await stores.made()
        assert await stores.agents.change(ACME, made.id, lambda before: before) == made
        assert await stores.agents.change(ACME, made.id, lambda _: named("One")) == made
        assert await stores.rows(made.id) == 1

    async def test_an_edit_that_fails_changes_nothing(self, stores: Stores) -> None:
        def refuse(_: AgentConfig) -> AgentConfig:
            raise LookupError

        made = await stores.made()
        with pytest.raises(LookupError):
            await stores.agents.change(ACME, made.id, refuse)
        assert await stores.agents.get(ACME, made.id) == made
        assert await stores.rows(made.id) == 1
        assert await stores.agents.change(ACME, made.id, count_on) is not None

    async def test_of_many_changes_at_once_none_is_lost(self, stores: Stores) -> None:
        made, other = await stores.made(), await stores.made()
        changes = [stores.agents.change(ACME, made.id, count_on) for _ in range(200)]
        among = [stores.agents.change(ACME, other.id, count_on) for _ in range(20)]
        changed = await asyncio.gather(*changes, *among)
        assert sorted(one.version for one in changed[:200] if one) == [*range(2, 202)]
        last = await stores.agents.get(ACME, made.id)
        assert last is not None
        assert (last.version, last.config.description) == (201, "200")
        seen: list[tuple[int, str]] = []
        for offset in range(0, 300, 100):
            page, total = await stores.agents.versions(ACME, made.id, limit=100, offset=offset)
            assert total == 201
            seen += [(one.version, one.config.description) for one in page]
        assert seen == [(number, str(number - 1)) for number in range(201, 1, -1)] + [(1, "")]
        also = await stores.agents.get(ACME, other.id)
        assert also is not None and also.version == 21

    async def test_changes_by_two_gateways_see_each_other(self, stores: Stores, url: str) -> None:
        second = await Database.open(url)
        made = await stores.made()
        both = (stores.agents, AgentStore(second))
        changes = [both[turn % 2].change(ACME, made.id, count_on) for turn in range(40)]
        await asyncio.gather(*changes)
        last = await stores.agents.get(ACME, made.id)
        assert last is not None
        assert (last.version, last.config.description) == (41, "40")
        await second.close()

    async def test_pages_are_newest_first(self, stores: Stores) -> None:
        made = [await stores.made(name=str(number)) for number in range(5)]
        newest = sorted(made, key=lambda one: (one.created_at, one.id), reverse=True)
        page, total = await stores.agents.page(ACME, limit=2, offset=1)
        assert (page, total) == (newest[1:3], 5)

    async def test_a_deleted_agent_leaves_its_numbers_and_calls(self, stores: Stores) -> None:
        made, other = await stores.made(), await stores.made()
        bound, others = await stores.number(made), await stores.number(other)
        calls = Store(stores.database)
        call = await calls.insert_call(
            NewCall(
                id=new_id("call"),
                auth_id="acme",
                direction="inbound",
                room_name="room",
                participant_identity="caller",
                from_number=None,
                to_number=None,
                max_duration_ms=1000,
                agent=made.agent,
                metadata={},
            ),
            CallEvent(type="call.queued"),
        )
        assert await stores.agents.delete(ACME, made.id) == made
        assert await stores.agents.get(OPERATOR, made.id) is None
        assert await stores.agents.change(ACME, made.id, count_on) is None
        assert await stores.agents.delete(ACME, made.id) is None
        assert await stores.rows(made.id) == 0
        unbound = await stores.numbers.get(ACME, bound.id)
        assert unbound == bound.model_copy(update={"agent_id": None, "bound_at": None})
        assert await stores.numbers.get(ACME, others.id) == others
        found = await calls.call_and_agent(call.id)
        assert found is not None and found[1] == made.agent

    async def test_changes_that_meet_a_deletion_leave_nothing(self, stores: Stores) -> None:
        for _ in range(10):
            made = await stores.made()
            changes = [stores.agents.change(ACME, made.id, count_on) for _ in range(6)]
            deletions = [stores.agents.delete(ACME, made.id) for _ in range(2)]
            *_, first, second = await asyncio.gather(*changes, *deletions)
            assert (first is None) != (second is None)
            assert await stores.agents.get(ACME, made.id) is None
            assert await stores.rows(made.id) == 0

    async def test_no_number_is_bound_to_an_agent_just_deleted(self, stores: Stores) -> None:
        for _ in range(10):
            made, number = await stores.made(), await stores.number()
            bound, _ = await asyncio.gather(
                stores.numbers.bind(ACME, number.id, made.id),
                stores.agents.delete(ACME, made.id),
            )
            assert bound is None or bound.agent_id == made.id
            left = await stores.numbers.get(ACME, number.id)
            assert left is not None and left.agent_id is None


class TestSqlite(OnSqlite, AgentContract):
    pass


class TestPostgres(OnPostgres, AgentContract):
    pass
