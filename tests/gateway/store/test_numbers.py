"""Numbers and credentials: one contract on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from cryptography.fernet import Fernet
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from core.models import AgentConfig, PhoneNumber, new_id, now
from gateway.store import migrations
from gateway.store.agents import AgentStore
from gateway.store.credentials import CredentialStore, InUse, NameTaken, Vault
from gateway.store.database import Database, Scope
from gateway.store.numbers import (
    MAX_PENDING,
    AgentGone,
    CredentialGone,
    NumberStore,
    NumberTaken,
    TooManyPending,
)
from tests.support.databases import OnPostgres, OnSqlite

pytestmark = pytest.mark.store

ACME, RIVAL, ALL = Scope("acme"), Scope("rival"), Scope(None)


def number(**changes: Any) -> PhoneNumber:
    values: dict[str, Any] = {
        "id": new_id("num"),
        "auth_id": "acme",
        "phone_number": "+14155550123",
        "country": "US",
        "provider": "sip",
        "direction": "both",
        "status": "active",
        "created_at": now(),
    }
    return PhoneNumber(**{**values, **changes})


@dataclass
class Stores:
    numbers: NumberStore
    agents: AgentStore
    credentials: CredentialStore

    async def agent(self, scope: Scope = ACME) -> str:
        return (await self.agents.create(scope, AgentConfig(name="Ann"))).id


class Contract:
    @pytest.fixture
    async def stores(self, url: str) -> AsyncIterator[Stores]:
        database = await Database.open(url)
        vault = Vault([Fernet.generate_key().decode()])
        yield Stores(NumberStore(database), AgentStore(database), CredentialStore(database, vault))
        await database.close()

    async def test_a_number_is_attached_once(self, stores: Stores) -> None:
        async def insert(auth_id: str | None) -> bool:
            try:
                await stores.numbers.insert(number(auth_id=auth_id))
            except NumberTaken:
                return False
            return True

        done = await asyncio.gather(*(insert(each) for each in ("acme", "rival", None, "acme")))
        assert sorted(done) == [False, False, False, True]

    async def test_any_tenant_claims_and_one_has_it(self, stores: Stores) -> None:
        mine, theirs = [number(auth_id=each, status="pending") for each in ("acme", "rival")]
        for claim in (mine, theirs):
            await stores.numbers.insert(claim)
        with pytest.raises(NumberTaken):
            await stores.numbers.insert(number(status="pending"))
        with pytest.raises(NumberTaken):
            await stores.numbers.insert(number())
        assert await stores.numbers.by_number(ACME, mine.phone_number) == mine
        assert await stores.numbers.provisioned() == []
        values = {"status": "attaching"}
        assert await stores.numbers.move(ALL, theirs.id, {"pending"}, values)
        with pytest.raises(NumberTaken):
            await stores.numbers.move(ALL, mine.id, {"pending"}, values)
        with pytest.raises(NumberTaken):
            await stores.numbers.insert(number(auth_id=None))
        found = await stores.numbers.by_number(ALL, mine.phone_number)
        assert found is not None and found.id == theirs.id
        assert await stores.numbers.withdraw(theirs.id) is False
        assert await stores.numbers.withdraw(mine.id) is True
        assert [each.id for each in await stores.numbers.provisioned()] == [theirs.id]

    async def test_so_many_wait_of_a_tenant_however_many_at_once(self, stores: Stores) -> None:
        def claims(start: int, end: int, **changes: Any) -> list[PhoneNumber]:
            numbers = (f"+1415555{7000 + n}" for n in range(start, end))
            return [number(status="pending", phone_number=each, **changes) for each in numbers]

        for claim in claims(3, MAX_PENDING):
            await stores.numbers.insert(claim)
        done = await asyncio.gather(
            *(stores.numbers.insert(claim) for claim in claims(200, 208)), return_exceptions=True
        )
        refused = [one for one in done if one is not None]
        assert len(refused) == 5
        assert all(isinstance(one, TooManyPending) for one in refused)
        for claim in claims(200, 202, auth_id="rival"):
            await stores.numbers.insert(claim)
        await stores.numbers.insert(number())

    async def test_a_claim_of_an_agent_that_is_gone(self, stores: Stores) -> None:
        theirs = await stores.agent(RIVAL)
        for agent_id in (theirs, "agt_nothing"):
            with pytest.raises(AgentGone):
                await stores.numbers.insert(number(status="pending", agent_id=agent_id))

    async def test_an_upgrade_keeps_the_numbers_there_were(self, empty_url: str) -> None:
        """Numbers outlast a migration for which SQLite creates their table again."""

        def at(revision: str) -> Callable[[Connection], None]:
            return lambda connection: command.upgrade(migrations.config(connection), revision)

        name = empty_url.replace("sqlite:", "sqlite+aiosqlite:").replace(
            "postgresql:", "postgresql+asyncpg:"
        )
        if (path := make_url(empty_url).database) and empty_url.startswith("sqlite"):
            Path(path).parent.mkdir(parents=True)
        engine = create_async_engine(name)
        row = {"id": "num_1", "number": "+14155550123", "country": "US", "provider": "sip"}
        row |= {"direction": "both", "status": "active", "auth_id": "acme", "provider_ref": "{}"}
        columns = ", ".join([*row, "created_at"])
        values = ", ".join([*(f"'{value}'" for value in row.values()), "1"])
        async with engine.begin() as connection:
            await connection.run_sync(at("0005"))
            await connection.execute(
                text(f"INSERT INTO phone_numbers ({columns}) VALUES ({values})")
            )
        await engine.dispose()
        database = await Database.open(empty_url)
        numbers = NumberStore(database)
        (kept,) = await numbers.provisioned()
        assert (kept.id, kept.status, kept.auth_id) == ("num_1", "active", "acme")
        assert kept.via == "sip"
        with pytest.raises(NumberTaken):
            await numbers.insert(number(auth_id="rival"))
        await numbers.insert(number(auth_id="rival", status="pending"))
        await database.close()

    async def test_one_of_many_that_read_the_same_may_change_it(self, stores: Stores) -> None:
        given = number(provider_ref={"sid": "PN1", "heldUntil": 1790000000.123456})
        await stores.numbers.insert(given)
        moves = (
            stores.numbers.move(
                ACME,
                given.id,
                {"active"},
                {"provider_ref": {"heldBy": str(turn)}, "via": "stream"},
                since=given.provider_ref,
            )
            for turn in range(5)
        )
        (moved,) = [done for done in await asyncio.gather(*moves) if done is not None]
        assert moved.via == "stream"
        assert await stores.numbers.get(ACME, given.id) == moved

    async def test_it_comes_back_as_it_went(self, stores: Stores) -> None:
        given = number(
            via="stream", provider_ref={"sid": "PN1", "before": {"trunkSid": None}}, trunk_id="ST_1"
        )
        await stores.numbers.insert(given)
        assert await stores.numbers.get(ACME, given.id) == given
        assert await stores.numbers.by_number(ALL, given.phone_number) == given
        assert await stores.numbers.get(RIVAL, given.id) is None
        assert await stores.numbers.provisioned() == [given]

    async def test_bound_to_an_agent_of_the_same_owner(self, stores: Stores) -> None:
        kept = number()
        await stores.numbers.insert(kept)
        mine, theirs = await stores.agent(), await stores.agent(RIVAL)
        for scope in (ACME, ALL):
            assert await stores.numbers.bind(scope, kept.id, theirs) is None
            assert await stores.numbers.bind(scope, kept.id, "agt_nothing") is None
        assert await stores.numbers.bind(RIVAL, kept.id, theirs) is None
        bound = await stores.numbers.bind(ACME, kept.id, mine, values={"direction": "inbound"})
        assert bound is not None and bound.bound_at is not None
        assert (bound.agent_id, bound.direction) == (mine, "inbound")
        assert await stores.numbers.get(ACME, kept.id) == bound
        # Bound again, the number keeps its place among the agent's numbers.
        assert await stores.numbers.bind(ACME, kept.id, mine) == bound
        file = await stores.numbers.bind(ACME, kept.id, "greeter")
        assert file is not None and file.agent_id == "greeter"
        freed = await stores.numbers.bind(ACME, kept.id, None)
        assert freed is not None and (freed.agent_id, freed.bound_at) == (None, None)

    async def test_an_agent_deleted_in_that_moment_gets_no_number(self, stores: Stores) -> None:
        for turn in range(8):
            kept = number(phone_number=f"+1415555{turn:04}")
            await stores.numbers.insert(kept)
            agent = await stores.agent()
            await asyncio.gather(
                stores.agents.delete(ACME, agent), stores.numbers.bind(ACME, kept.id, agent)
            )
            after = await stores.numbers.get(ACME, kept.id)
            assert after is not None and after.agent_id is None

    async def test_moved_only_from_where_it_is_thought_to_be(self, stores: Stores) -> None:
        kept = number(status="attaching")
        await stores.numbers.insert(kept)
        values = {"status": "detaching"}
        assert await stores.numbers.move(ACME, kept.id, {"active"}, values) is None
        assert await stores.numbers.move(RIVAL, kept.id, {"attaching"}, values) is None
        assert await stores.numbers.bind(ACME, kept.id, None) is None
        moved = await stores.numbers.move(ACME, kept.id, {"attaching"}, values)
        assert moved == await stores.numbers.get(ACME, kept.id)
        assert moved is not None and moved.status == "detaching"

    async def test_a_credential_in_use_stays(self, stores: Stores) -> None:
        """Whichever request wins, no number is left with a deleted credential."""
        for turn in range(8):
            name = f"trunk{turn}"
            credential = await stores.credentials.create(ACME, name, "sip", {"address": "a"})
            kept = number(phone_number=f"+1415555{turn:04}", credential_id=credential.id)
            inserted, deleted = await asyncio.gather(
                stores.numbers.insert(kept),
                stores.credentials.delete(ACME, name),
                return_exceptions=True,
            )
            there = await stores.credentials.get(ACME, name) is not None
            assert (inserted is None) == there
            assert isinstance(deleted, InUse) if there else isinstance(inserted, CredentialGone)

    async def test_credentials(self, stores: Stores) -> None:
        store = stores.credentials
        made = await store.create(ACME, "main", "twilio", {"authToken": "t"})
        with pytest.raises(NameTaken):
            await store.create(ACME, "main", "sip", {})
        await store.create(RIVAL, "main", "twilio", {"authToken": "r"})
        assert await store.find(ACME, "main") == (made, {"authToken": "t"})
        assert await store.find(ACME, made.id) == (made, {"authToken": "t"})
        assert await store.get(RIVAL, made.id) is None
        assert await store.of_provider(ACME, "twilio", limit=2) == [made]
        assert await store.of_provider(ALL, "twilio", limit=2) == []
        assert await store.names([made.id, "cred_x"]) == {made.id: "main"}
        assert await store.reseal() == 2
        assert await store.find(ACME, "main") == (made, {"authToken": "t"})
        assert await store.delete(ACME, "main") == made


class TestSqlite(OnSqlite, Contract):
    pass


class TestPostgres(OnPostgres, Contract):
    pass
