"""Agents and numbers as calls look them up, through the cache."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.errors import Unavailable
from core.models import AgentConfig, PhoneNumber, new_id, now
from dev.stack.environment import GivenSettings
from gateway.cache.base import Cache, agent_key
from gateway.cache.memory import MemoryCache
from gateway.lookup.agent_files import AgentFiles
from gateway.lookup.agents import Agents
from gateway.lookup.numbers import Numbers
from gateway.store.agents import AgentStore
from gateway.store.database import Database, Scope
from gateway.store.numbers import NumberStore

pytestmark = pytest.mark.store

ACME, RIVAL, OPERATOR = Scope("acme"), Scope("rival"), Scope(None)


@dataclass
class Desk:
    """The stores, lookups and cache of a gateway's agents and numbers."""

    database: Database
    agents: AgentStore
    numbers: NumberStore
    lookup: Agents
    number_lookup: Numbers
    cache: Cache

    async def number(self, agent_id: str | None, auth_id: str | None = "acme") -> PhoneNumber:
        number = PhoneNumber(
            id=new_id("num"),
            auth_id=auth_id,
            phone_number=f"+1510555{random.randrange(10_000):04}",
            country="US",
            provider="sip",
            direction="both",
            status="active",
            agent_id=agent_id,
            bound_at=now() if agent_id else None,
            created_at=now(),
        )
        await self.numbers.insert(number)
        return number


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    (tmp_path / "demo.yaml").write_text("name: Demo")
    cache = MemoryCache()
    database = await Database.open(f"sqlite:///{tmp_path}/test.db")
    agents, numbers = AgentStore(database, cache), NumberStore(database, cache)
    lookup = Agents(AgentFiles(GivenSettings(agents_dir=tmp_path)), agents, cache)
    yield Desk(database, agents, numbers, lookup, Numbers(numbers, cache), cache)
    await database.close()


def renamed(name: str) -> Callable[[AgentConfig], AgentConfig]:
    return lambda before: before.model_copy(update={"name": name})


class TestLookup:
    async def test_a_warm_agent_needs_no_database(self, desk: Desk) -> None:
        made = await desk.agents.create(ACME, AgentConfig(name="One"))
        await desk.lookup.warm(made.id)
        number = await desk.number(made.id)
        await desk.number_lookup.warm(number.id)
        await desk.agents.delete(OPERATOR, (await desk.agents.create(ACME, made.config)).id)
        # From here on every query fails.
        await desk.database.close()
        desk.database.read = desk.database.write = None  # type: ignore[method-assign, assignment]
        assert await desk.lookup.get(ACME, made.id) == made.agent
        assert await desk.number_lookup.get(ACME, number.id) == number

    async def test_the_scope_is_checked_on_what_is_kept(self, desk: Desk) -> None:
        made = await desk.agents.create(ACME, AgentConfig(name="One"))
        operators = await desk.agents.create(OPERATOR, AgentConfig(name="Own"))
        number = await desk.number(made.id)
        for _ in range(2):
            for scope, sees in ((RIVAL, False), (ACME, True), (OPERATOR, True)):
                assert (await desk.lookup.get(scope, made.id) is not None) is sees
                assert (await desk.number_lookup.get(scope, number.id) is not None) is sees
            assert await desk.lookup.get(ACME, operators.id) is None
            assert await desk.lookup.get(OPERATOR, operators.id) == operators.agent

    async def test_a_change_counts_at_once(self, desk: Desk) -> None:
        made = await desk.agents.create(ACME, AgentConfig(name="One"))
        await desk.lookup.warm(made.id)
        for name in ("Two", "Three"):
            changed = await desk.agents.change(ACME, made.id, renamed(name))
            assert changed is not None
            assert await desk.lookup.get(ACME, made.id) == changed.agent

    async def test_a_binding_counts_at_once(self, desk: Desk) -> None:
        made = await desk.agents.create(ACME, AgentConfig(name="One"))
        number = await desk.number(None)
        await desk.number_lookup.warm(number.id)
        bound = await desk.numbers.bind(ACME, number.id, made.id)
        assert bound is not None and bound.agent_id == made.id
        assert await desk.number_lookup.get(ACME, number.id) == bound
        moved = await desk.numbers.move(ACME, number.id, ["active"], {"direction": "inbound"})
        assert moved is not None and moved.direction == "inbound"
        assert await desk.number_lookup.get(ACME, number.id) == moved
        await desk.numbers.delete(number.id)
        assert await desk.number_lookup.get(ACME, number.id) is None

    async def test_a_deleted_agent_is_gone_from_its_numbers(self, desk: Desk) -> None:
        made = await desk.agents.create(ACME, AgentConfig(name="One"))
        numbers = [await desk.number(made.id) for _ in range(3)]
        for number in numbers:
            await desk.number_lookup.warm(number.id)
        await desk.lookup.warm(made.id)
        await desk.agents.delete(ACME, made.id)
        assert await desk.lookup.get(ACME, made.id) is None
        for number in numbers:
            unbound = await desk.number_lookup.get(ACME, number.id)
            assert unbound is not None
            assert (unbound.agent_id, unbound.bound_at) == (None, None)

    async def test_a_change_whose_asker_went_away_counts(self, desk: Desk) -> None:
        made = await desk.agents.create(ACME, AgentConfig(name="One"))
        await desk.lookup.warm(made.id)
        editing = asyncio.Event()

        def edit(before: AgentConfig) -> AgentConfig:
            editing.set()
            return before.model_copy(update={"name": "Two"})

        asker = asyncio.create_task(desk.agents.change(ACME, made.id, edit))
        await editing.wait()
        asker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asker
        agent = await desk.lookup.get(ACME, made.id)
        assert agent is not None and agent.config.name == "Two"

    @pytest.mark.parametrize("kept", ["", "{", '{"id": "agt_1"}', '{"future": true}', "[]"])
    async def test_what_another_release_kept_is_read_anew(self, desk: Desk, kept: str) -> None:
        made = await desk.agents.create(ACME, AgentConfig(name="One"))

        async def foreign() -> str | None:
            return kept

        await desk.cache.read(agent_key(made.id), foreign)
        assert await desk.lookup.get(RIVAL, made.id) is None
        for _ in range(2):
            assert await desk.lookup.get(ACME, made.id) == made.agent

    async def test_files_are_everybodys_and_never_asked_of_the_database(self, desk: Desk) -> None:
        await desk.database.close()
        desk.database.read = None  # type: ignore[method-assign, assignment]
        for scope in (ACME, OPERATOR):
            agent = await desk.lookup.get(scope, "demo")
            assert agent is not None and agent.config.name == "Demo"

    @pytest.mark.parametrize(
        "hostile",
        ["", "agt_" + "a" * 61, "agt_*", "agt_a:b", "agt_\n", "agt_ü", "../demo", "agt_'--"],
    )
    async def test_what_can_be_no_id_is_asked_of_nobody(self, desk: Desk, hostile: str) -> None:
        await desk.database.close()
        desk.database.read = None  # type: ignore[method-assign, assignment]
        assert await desk.lookup.get(ACME, hostile) is None
        assert await desk.number_lookup.get(ACME, hostile) is None
        await desk.lookup.warm(hostile)

    async def test_a_database_that_is_away_does_not_undo_a_change(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = await desk.agents.create(ACME, AgentConfig(name="One"))

        def away() -> None:
            raise Unavailable("away")

        monkeypatch.setattr(desk.database, "read", away)
        await desk.lookup.warm(made.id)
        with pytest.raises(Unavailable):
            await desk.lookup.get(ACME, made.id)
