"""/api/v1/credentials: what is stored, what is refused, and that no secret is shown."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from core.models import PhoneNumber, now
from core.settings import Settings
from gateway.__main__ import main
from gateway.keys import CREDENTIALS, NUMBERS
from gateway.store.credentials import Unreadable
from gateway.store.database import Scope
from tests.conftest import ACME, RIVAL, Answered, Gateway, operator
from tests.support.inprocess import Running, running, settings_in

pytestmark = pytest.mark.store

URL = "/api/v1/credentials"
TOKEN, PASSWORD = "twilio-auth-token-0123456789abcd", "sip-passw0rd-of-anna"
TWILIO = {
    "name": "TWILIO_ACME",
    "provider": "twilio",
    "accountSid": "AC" + "0" * 32,
    "authToken": TOKEN,
}
SIP = {
    "name": "office",
    "provider": "sip",
    "address": "sip.example.com:5060",
    "username": "anna",
    "password": PASSWORD,
    "allowedAddresses": ["203.0.113.7", "2001:db8::/32"],
}


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path)) as own:
        yield own


@pytest.fixture
def gateway(own: Running) -> Gateway:
    return Gateway(own.http)


async def made(gateway: Gateway, body: dict[str, Any], **options: Any) -> Any:
    answer = await gateway.post(URL, json=body, **options)
    assert answer.status == 201, answer.body
    return answer.body["data"]


def code(answer: Answered) -> str:
    return str(answer.body["meta"]["code"])


async def test_made_shown_listed_and_deleted(gateway: Gateway) -> None:
    answer = await gateway.post(URL, json=TWILIO)
    assert answer.status == 201
    view = answer.body["data"]
    assert answer.body == {"success": True, "data": view, "message": "Credential kept", "meta": {}}
    assert view.keys() == {"id", "name", "provider", "createdAt"}
    other = await made(gateway, SIP)
    for ref in (view["id"], "TWILIO_ACME"):
        assert (await gateway.get(f"{URL}/{ref}")).body["data"] == view
    listed = (await gateway.get(URL, params={"limit": 1})).body
    assert listed["data"] == [other]
    assert listed["meta"] == {"limit": 1, "offset": 0, "total": 2, "hasMore": True}
    gone = await gateway.request("DELETE", f"{URL}/TWILIO_ACME")
    assert (gone.status, gone.body["data"]) == (200, view)
    missing = await gateway.get(f"{URL}/{view['id']}")
    assert (missing.status, code(missing)) == (404, "CREDENTIAL_NOT_FOUND")


async def test_a_name_is_unique_for_its_tenant(gateway: Gateway) -> None:
    answers = await asyncio.gather(*(gateway.post(URL, json=TWILIO) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [201, 409, 409, 409, 409]
    assert {code(answer) for answer in answers if answer.status == 409} == {"CREDENTIAL_EXISTS"}
    await made(gateway, TWILIO, headers=RIVAL)
    await made(gateway, TWILIO, headers=operator())


async def test_another_tenants_is_not_there(gateway: Gateway) -> None:
    view = await made(gateway, TWILIO)
    for method in ("GET", "DELETE"):
        unknown = await gateway.request(method, f"{URL}/cred_unknown", headers=RIVAL)
        for ref in (view["id"], "TWILIO_ACME"):
            answer = await gateway.request(method, f"{URL}/{ref}", headers=RIVAL)
            assert (answer.status, answer.body) == (unknown.status, unknown.body)
    assert (await gateway.get(URL, headers=RIVAL)).body["data"] == []
    # An operator sees every credential by id, but only its own by name.
    assert (await gateway.get(f"{URL}/{view['id']}", headers=operator())).status == 200
    assert (await gateway.get(f"{URL}/TWILIO_ACME", headers=operator())).status == 404


async def test_the_same_key_makes_one(gateway: Gateway) -> None:
    headers = {**ACME, "Idempotency-Key": "k1"}
    first, second = [await made(gateway, SIP, headers=headers) for _ in range(2)]
    assert first == second
    other = await gateway.post(URL, json={**SIP, "password": "another"}, headers=headers)
    assert (other.status, code(other)) == (409, "IDEMPOTENCY_KEY_REUSED")


BAD: list[tuple[Any, str]] = [
    ([], ""),
    ({}, "provider"),
    ({**SIP, "provider": "other"}, "provider"),
    ({**SIP, "provider": ["sip"]}, "provider"),
    ({**SIP, "name": ""}, "name"),
    ({**SIP, "name": "a b"}, "name"),
    ({**SIP, "name": "x\n"}, "name"),
    ({**SIP, "name": "cred_0123"}, "name"),
    ({**SIP, "name": "x" * 65}, "name"),
    ({**SIP, "name": 7}, "name"),
    ({**SIP, "address": None}, "address"),
    ({**SIP, "address": "sip:example.com"}, "address"),
    ({**SIP, "address": "h:99999"}, "address"),
    ({**SIP, "username": "an na"}, "username"),
    ({**SIP, "username": 'a"b'}, "username"),
    ({**SIP, "password": None}, ""),
    ({**SIP, "password": "x" * 257}, "password"),
    ({**SIP, "password": [PASSWORD]}, "password"),
    ({**SIP, "transport": "sctp"}, "transport"),
    ({**SIP, "country": "us"}, "country"),
    ({**SIP, "country": "XX"}, "country"),
    ({**SIP, "allowedAddresses": ["example.com"]}, "allowedAddresses.0"),
    ({**SIP, "allowedAddresses": ["203.0.113.7"] * 65}, "allowedAddresses"),
    ({**SIP, "authToken": TOKEN}, "authToken"),
    ({**TWILIO, "accountSid": "AC1"}, "accountSid"),
    ({**TWILIO, "accountSid": "AC" + "0" * 32 + "/.."}, "accountSid"),
    ({**TWILIO, "authToken": ""}, "authToken"),
    ({key: value for key, value in TWILIO.items() if key != "authToken"}, "authToken"),
    ({**TWILIO, "username": "u", "password": PASSWORD}, ""),
    ({**TWILIO, "sipAddress": "a.example", "username": "u"}, ""),
]


@pytest.mark.parametrize(("body", "field"), BAD)
async def test_refused(gateway: Gateway, body: Any, field: str) -> None:
    answer = await gateway.post(URL, json=body)
    assert (answer.status, code(answer)) == (422, "VALIDATION_ERROR")
    assert answer.body["meta"]["details"][0]["field"] == field
    assert not any(secret in str(answer.body) for secret in (TOKEN, PASSWORD))
    assert (await gateway.get(URL)).body["data"] == []


async def test_in_use_by_a_number(own: Running, gateway: Gateway) -> None:
    view = await made(gateway, SIP)
    number = PhoneNumber(
        id="num_1",
        auth_id="acme",
        phone_number="+14155550123",
        country="US",
        provider="sip",
        direction="both",
        status="active",
        credential_id=view["id"],
        created_at=now(),
    )
    await own.app[NUMBERS].insert(number)
    answer = await gateway.request("DELETE", f"{URL}/office")
    assert (answer.status, code(answer)) == (409, "CREDENTIAL_IN_USE")
    await own.app[NUMBERS].delete("num_1")
    assert (await gateway.request("DELETE", f"{URL}/office")).status == 200


async def test_nothing_secret_is_written_or_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(settings_in(tmp_path)) as own:
        gateway = Gateway(own.http)
        texts = [
            str(
                (await gateway.post(URL, json=body, headers={**ACME, "Idempotency-Key": name})).body
            )
            for name, body in (("a", TWILIO), ("b", SIP), ("c", SIP), ("b", TWILIO))
        ]
        texts += [str((await gateway.get(path)).body) for path in (URL, f"{URL}/office")]
        assert await own.app[CREDENTIALS].find(Scope("acme"), "office") is not None
    texts += [record.getMessage() + str(record.__dict__) for record in caplog.records]
    raw = await asyncio.to_thread(database_bytes, tmp_path)
    assert b"TWILIO_ACME" in raw
    for secret in (TOKEN, PASSWORD, "anna", "sip.example.com"):
        assert secret.encode() not in raw
    for secret in (TOKEN, PASSWORD):
        assert not any(secret in text for text in texts)


class TestRotation:
    """A new key is added in front, everything is resealed, and the old key is removed."""

    OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))

    @pytest.fixture
    async def kept(self, tmp_path: Path) -> None:
        async with running(settings_in(tmp_path, secrets_key=self.OLD)) as own:
            await made(Gateway(own.http), SIP)

    async def secret(self, settings: Settings) -> Any:
        async with running(settings) as own:
            found = await own.app[CREDENTIALS].find(Scope("acme"), "office")
            return None if found is None else found[1]["password"]

    def reseal(self, monkeypatch: pytest.MonkeyPatch, folder: Path, keys: str, *more: str) -> int:
        monkeypatch.setattr("core.settings.load", lambda: settings_in(folder, secrets_key=keys))
        handlers, level = logging.root.handlers[:], logging.root.level
        try:
            return main(["reseal", *more])
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)

    async def test_both_keys_then_the_new_one_alone(
        self,
        kept: None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        both = f"{self.NEW},{self.OLD}"
        assert await self.secret(settings_in(tmp_path, secrets_key=both)) == PASSWORD
        assert await asyncio.to_thread(self.reseal, monkeypatch, tmp_path, both) == 0
        assert "resealed 1 secrets" in capsys.readouterr().out
        assert await self.secret(settings_in(tmp_path, secrets_key=self.NEW)) == PASSWORD
        with pytest.raises(Unreadable):
            await self.secret(settings_in(tmp_path, secrets_key=self.OLD))

    async def test_without_the_old_key_nothing_is_changed(
        self,
        kept: None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        before = sealed(tmp_path)
        assert await asyncio.to_thread(self.reseal, monkeypatch, tmp_path, self.NEW) == 2
        error = capsys.readouterr().err
        assert "SECRETS_KEY" in error
        assert not any(key in error for key in (self.OLD, self.NEW, PASSWORD))
        assert sealed(tmp_path) == before
        assert await self.secret(settings_in(tmp_path, secrets_key=self.OLD)) == PASSWORD

    async def test_no_other_command(
        self, kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = (monkeypatch, tmp_path, self.OLD, "now")
        assert await asyncio.to_thread(self.reseal, *arguments) == 2


def sealed(folder: Path) -> list[Any]:
    connection = sqlite3.connect(folder / "test.db")
    try:
        return connection.execute("SELECT name, sealed FROM credentials").fetchall()
    finally:
        connection.close()


def database_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("test.db*"))
