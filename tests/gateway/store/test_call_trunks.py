"""The trunk that a call's request specifies: sealed while the call lasts, deleted at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import select

from core.errors import ServerFault
from core.events import ended
from core.models import CallEvent
from gateway.calls.plan import CallPlan
from gateway.store.call_trunks import OwnTrunk, reseal_call_trunks
from gateway.store.calls import LiveIdentity, Store
from gateway.store.credentials import Unreadable, Vault
from gateway.store.database import Database
from gateway.store.reseal import reseal
from gateway.store.tables import CallTrunkRow
from sip.dial import Trunk
from tests.conftest import ACME
from tests.gateway.store.test_calls import new_call, queued
from tests.support.databases import OnPostgres, OnSqlite
from tests.support.inprocess import running, settings_in
from tests.support.numbers import dial_nothing, make_agent, make_number
from tests.support.sip_call_rig import body

pytestmark = [pytest.mark.store, pytest.mark.attack]

HOST, USER, PASSWORD = "theirs.example.com:5070", "anna", "pw-of-anna"
THEIRS = OwnTrunk(address=HOST, username=USER, password=SecretStr(PASSWORD), transport="tls")


def a_key() -> str:
    return Fernet.generate_key().decode()


async def rows(database: Database) -> dict[str, str]:
    query = select(CallTrunkRow.call_id, CallTrunkRow.sealed)
    async with database.read() as connection:
        return {row.call_id: row.sealed for row in await connection.execute(query)}


class Contract:
    @pytest.fixture
    async def database(self, url: str) -> AsyncIterator[Database]:
        database = await Database.open(url)
        yield database
        await database.close()

    @pytest.fixture
    def store(self, database: Database) -> Store:
        return Store(database, vault=Vault([a_key()]))

    async def test_it_is_kept_sealed(self, database: Database, store: Store) -> None:
        with_one = await store.insert_call(new_call(own_trunk=THEIRS), queued())
        without = await store.insert_call(new_call(), queued())
        assert await store.own_trunk(with_one.id) == THEIRS
        assert await store.own_trunk(without.id) is None
        assert await store.own_trunk("call_nope") is None
        kept = await rows(database)
        assert list(kept) == [with_one.id]
        for secret in (HOST, USER, PASSWORD, "tls"):
            assert secret not in kept[with_one.id]

    async def test_it_goes_when_the_call_has_ended(self, database: Database, store: Store) -> None:
        """A later report of an end does not bring it back."""
        call = await store.insert_call(new_call(own_trunk=THEIRS), queued())
        other = await store.insert_call(new_call(own_trunk=THEIRS), queued())
        await store.append(call.id, [CallEvent(type="call.answered")], "gateway")
        assert await store.own_trunk(call.id) == THEIRS
        for source in ("worker", "reconciler"):
            end = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
            await store.append(call.id, [end], source)
            assert list(await rows(database)) == [other.id]

    async def test_of_a_call_that_is_not_kept_nothing_is(
        self, database: Database, store: Store
    ) -> None:
        over = CallEvent(type="call.ended", data=ended("failed", "agent_unavailable"))
        await store.insert_call(new_call(own_trunk=THEIRS), queued(), over)
        one = new_call()
        await store.insert_call(one, queued())
        with pytest.raises(LiveIdentity):
            twin = new_call(room_name=one.room_name, own_trunk=THEIRS)
            await store.insert_call(twin, queued())
        assert await rows(database) == {}

    async def test_with_another_key_it_cannot_be_read(
        self, database: Database, store: Store
    ) -> None:
        call = await store.insert_call(new_call(own_trunk=THEIRS), queued())
        with pytest.raises(ServerFault) as caught:
            await Store(database, vault=Vault([a_key()])).own_trunk(call.id)
        assert caught.value.code == "CREDENTIAL_UNREADABLE"
        assert HOST not in str(caught.value)

    async def test_it_is_sealed_anew(self, database: Database) -> None:
        old, new = a_key(), a_key()
        store = Store(database, vault=Vault([old]))
        call = await store.insert_call(new_call(own_trunk=THEIRS), queued())
        with pytest.raises(Unreadable):
            await reseal_call_trunks(database, Vault([new]))
        assert await store.own_trunk(call.id) == THEIRS
        assert await reseal_call_trunks(database, Vault([new, old])) == 1
        assert await Store(database, vault=Vault([new])).own_trunk(call.id) == THEIRS

    async def test_without_a_key_the_call_is_not_kept(self, database: Database) -> None:
        with pytest.raises(ValueError, match="vault"):
            await Store(database).insert_call(new_call(own_trunk=THEIRS), queued())
        assert await rows(database) == {}


class TestSqlite(OnSqlite, Contract):
    pass


class TestPostgres(OnPostgres, Contract):
    pass


def test_it_shows_in_no_representation() -> None:
    call = new_call(own_trunk=THEIRS)
    assert PASSWORD not in repr(call) and PASSWORD not in str(THEIRS)


SIP = {"outbound_address": HOST, "auth_username": USER, "auth_password": PASSWORD}
CAMEL = {"outboundAddress": HOST, "authUsername": USER, "authPassword": PASSWORD}
USUAL: dict[str, Any] = {
    "sip_outbound_address": "usual.example.com",
    "sip_outbound_auth_username": "us",
    "sip_outbound_auth_password": "our-password",
}


def some(values: dict[str, str], *names: str) -> dict[str, str | None]:
    """Return the object with only those fields; the others are None."""
    return {
        name: value if name.lower().replace("_", "") in names else None
        for name, value in values.items()
    }


class TestRequests:
    """The trunk that is stored with a request's call."""

    @pytest.mark.parametrize(
        ("names", "kept"),
        [
            ((), None),
            (("outboundaddress",), Trunk(address=HOST)),
            (
                ("outboundaddress", "authusername", "authpassword"),
                Trunk(address=HOST, username=USER, password=PASSWORD),
            ),
            (
                ("authusername",),
                Trunk(address="usual.example.com", username=USER, password="our-password"),
            ),
        ],
    )
    @pytest.mark.parametrize("path", ["/sip/call", "/v1/calls"])
    async def test_as_it_was_dialled(
        self,
        path: str,
        names: tuple[str, ...],
        kept: Trunk | None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        plans: list[CallPlan] = dial_nothing(monkeypatch)
        async with running(settings_in(tmp_path, **USUAL)) as own:
            if path == "/sip/call":
                request = body(sip=some(SIP, *names))
            else:
                agent = await make_agent(own)
                await make_number(own, agent=agent)
                request = {
                    "agentId": agent.id,
                    "toNumber": "+15551234567",
                    "sip": some(CAMEL, *names),
                }
            async with own.http.post(path, json=request, headers=ACME) as answer:
                assert answer.status == 200, await answer.text()
                text = await answer.text()
            (plan,) = plans
            found = await own.store.own_trunk(plan.call_id)
            assert (found is None) == (kept is None)
            if found is not None and kept is not None:
                password = found.password and found.password.get_secret_value()
                assert (found.address, found.username, password) == (
                    kept.address,
                    kept.username,
                    kept.password,
                )
            async with own.http.get(f"/v1/calls/{plan.call_id}", headers=ACME) as answer:
                text += await answer.text()
            for secret in (HOST, USER, PASSWORD, "usual.example.com", "our-password"):
                assert secret not in text


async def test_the_command_seals_it_anew(tmp_path: Path) -> None:
    old, new = a_key(), a_key()
    async with running(settings_in(tmp_path, secrets_key=old)) as own:
        call = await own.call(own_trunk=THEIRS)
    assert await reseal(settings_in(tmp_path, secrets_key=f"{new},{old}")) == 1
    async with running(settings_in(tmp_path, secrets_key=new)) as own:
        assert await own.store.own_trunk(call.id) == THEIRS
