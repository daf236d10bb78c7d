"""Every request in which a tenant names a SIP host, over HTTP; a LiveKit stub records dials."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from core.models import Agent, PhoneNumber, new_id
from dev.standins.livekit import LiveKitStub, phone
from gateway.keys import CREDENTIALS
from gateway.store.database import Scope
from sip.guard import TENANT_DIAL, AddressRefused
from tests.conftest import ACME, operator
from tests.support.edge import served
from tests.support.inprocess import Running, running, settings_in
from tests.support.numbers import make_agent, make_number

pytestmark = [
    pytest.mark.store,
    pytest.mark.attack,
    pytest.mark.asyncio(loop_scope="session"),
]

WHY = AddressRefused().message
PUBLIC = "93.184.216.34"
LEADS_TO = {
    "trunk.example": [PUBLIC],
    "private.example": ["10.0.0.1"],
    "meta.example": ["169.254.169.254"],
    "mixed.example": [PUBLIC, "127.0.0.1"],
    "six.example": ["::ffff:127.0.0.1"],
    "ours.example": ["203.0.113.5"],
}
# Addresses that are not public, in several spellings, and localhost.
LITERAL = [
    "127.0.0.1",
    "127.0.0.1:22",
    "127.0.0.1:5060",
    "10.0.0.1:5060",
    "169.254.169.254:80",
    "172.17.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.1.75",
    "[::]",
    "[::1]:6379",
    "[::ffff:127.0.0.1]",
    "[2002:7f00:1::]",
    "[64:ff9b::7f00:1]",
    "[fd00::1]",
    "[fe80::1]",
    "localhost",
    "LocalHost.:8080",
    "db.localhost",
    "0x7f000001",
    "0xa9fea9fe:80",
    "127.0x1",
]
# Names of private addresses, our own name, and one without an address.
NAMED = [
    "private.example",
    "PRIVATE.example.:5080",
    "meta.example:80",
    "mixed.example",
    "six.example",
    "ours.example",
    "nowhere.example",
]
REFUSED = LITERAL + NAMED


async def resolve(name: str, _tenant: str | None) -> Sequence[str]:
    return LEADS_TO.get(name.rstrip(".").lower(), [])


class Rig:
    def __init__(self, gateway: Running, livekit: LiveKitStub, agent: Agent) -> None:
        self.gateway = gateway
        self.livekit = livekit
        self.agent = agent

    async def post(
        self, path: str, body: Any, headers: dict[str, str] = ACME
    ) -> tuple[int, dict[str, Any]]:
        async with self.gateway.http.post(path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def number(self, address: str, provider: str = "sip") -> PhoneNumber:
        """Return a number of acme's whose credential was stored before addresses were checked."""
        secret = {"address": address}
        if provider == "twilio":
            secret = {"accountSid": "AC1", "authToken": "t", "sipAddress": address}
        made = await self.gateway.app[CREDENTIALS].create(
            Scope("acme"),
            new_id("name"),
            provider,  # type: ignore[arg-type]
            secret,
        )
        return await make_number(self.gateway, agent=self.agent, credential_id=made.id)

    def nothing_dialled(self) -> bool:
        return not self.livekit.dialled


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    livekit = LiveKitStub()
    async with served(livekit.app()) as edge:
        settings = settings_in(
            tmp_path_factory.mktemp("guarded"),
            livekit_url=f"http://127.0.0.1:{edge.port}",
            sip_outbound_address="127.0.0.1:5999",
            sip_public_address="ours.example",
        )
        async with running(settings, resolve) as gateway:
            yield Rig(gateway, livekit, await make_agent(gateway))


@pytest_asyncio.fixture(loop_scope="session")
async def rig(shared: Rig) -> Rig:
    shared.livekit.dialled.clear()
    shared.livekit.referred.clear()
    return shared


def sip_call(address: str | None, **changes: Any) -> dict[str, Any]:
    return {
        "room_name": new_id("room"),
        "participant_name": "P",
        "participant_identity": "p",
        "from_phone_number": "+14155550100",
        "to_phone_number": "+14155550199",
        "agent": None,
        "sip": {"outbound_address": address},
        **changes,
    }


class TestSipCall:
    @pytest.mark.parametrize("address", REFUSED)
    async def test_refused(self, rig: Rig, address: str) -> None:
        body = sip_call(address)
        answer = await rig.post("/sip/call", body)
        assert answer == (403, {"error": WHY, "code": "DESTINATION_NOT_ALLOWED"})
        assert rig.nothing_dialled()
        assert body["room_name"] not in rig.livekit.rooms

    @pytest.mark.parametrize("address", ["127.0.0.1", "private.example", "nowhere.example"])
    async def test_a_dry_run_says_so(self, rig: Rig, address: str) -> None:
        status, told = await rig.post("/sip/call", sip_call(address, dry_run=True))
        assert (status, told["policy"]) == (200, {"allowed": False, "reason": WHY})

    async def test_a_dry_run_of_what_may_be_dialled(self, rig: Rig) -> None:
        for address, headers in (("trunk.example", ACME), ("10.0.0.1", operator())):
            status, told = await rig.post("/sip/call", sip_call(address, dry_run=True), headers)
            assert (status, told["policy"]) == (200, {"allowed": True, "reason": None})

    async def test_a_public_one(self, rig: Rig) -> None:
        status, told = await rig.post("/sip/call", sip_call("trunk.example"))
        assert status == 200, told
        [dialled] = rig.livekit.dialled
        assert dialled.trunk.hostname == "trunk.example:5060"
        assert TENANT_DIAL in dialled.participant_attributes

    @pytest.mark.parametrize("address", ["127.0.0.1:5060", "private.example", "nowhere.example"])
    async def test_the_operator_is_free(self, rig: Rig, address: str) -> None:
        status, told = await rig.post("/sip/call", sip_call(address), operator())
        assert status == 200, told
        [dialled] = rig.livekit.dialled
        assert dialled.trunk.hostname == address
        assert TENANT_DIAL not in dialled.participant_attributes

    @pytest.mark.parametrize("sip", [None, {}, {"outbound_address": None, "auth_username": "u"}])
    async def test_the_operators_trunk_may_be_private(self, rig: Rig, sip: Any) -> None:
        status, told = await rig.post("/sip/call", sip_call(None, sip=sip))
        assert status == 200, told
        [dialled] = rig.livekit.dialled
        assert dialled.trunk.hostname == "127.0.0.1:5999"
        assert TENANT_DIAL not in dialled.participant_attributes

    @pytest.mark.parametrize("username", ['a"b', "a\\b", "a\r\nX: y", "a\x00b", "a\x7f"])
    async def test_a_login_that_would_end_its_header(self, rig: Rig, username: str) -> None:
        sip = {"outbound_address": "trunk.example", "auth_username": username}
        status, told = await rig.post("/sip/call", sip_call(None, sip=sip))
        assert (status, told["code"]) in {(400, "INVALID_REQUEST"), (400, "INVALID_JSON")}
        assert rig.nothing_dialled()


class TestCallsOfNumbers:
    @pytest.mark.parametrize("address", [*LITERAL[:6], *NAMED])
    async def test_the_requests_own_trunk(self, rig: Rig, address: str) -> None:
        number = await make_number(rig.gateway, agent=rig.agent)
        body = self.call(rig, number) | {"sip": {"outboundAddress": address}}
        status, told = await rig.post("/v1/calls", body)
        assert (status, told["error"]["code"]) == (403, "DESTINATION_NOT_ALLOWED")
        assert told["error"]["message"] == WHY
        assert rig.nothing_dialled()

    @pytest.mark.parametrize("path", ["/v1/calls", "/api/v1/sessions", "/api/v1/sessions/dispatch"])
    @pytest.mark.parametrize("provider", ["sip", "twilio"])
    @pytest.mark.parametrize("address", ["127.0.0.1:22", "127.1", "mixed.example", "gone.example"])
    async def test_a_credential_that_was_stored_before(
        self, rig: Rig, path: str, provider: str, address: str
    ) -> None:
        number = await rig.number(address, provider)
        body = self.call(rig, number)
        if path != "/v1/calls":
            del body["fromNumberId"]
            body |= {"channel": "voice", "fromNumber": number.phone_number}
        for headers in (ACME, operator()):  # the operator calls on the tenant's behalf
            status, told = await rig.post(path, body, headers)
            code = told["meta"]["code"] if path != "/v1/calls" else told["error"]["code"]
            assert (status, code) == (403, "DESTINATION_NOT_ALLOWED")
        assert rig.nothing_dialled()

    @staticmethod
    def call(rig: Rig, number: PhoneNumber) -> dict[str, Any]:
        return {
            "agentId": rig.agent.id,
            "toNumber": "+14155550199",
            "fromNumberId": number.id,
        }


class TestCredentials:
    @pytest.mark.parametrize("address", LITERAL + ["ours.example", "OURS.example.:5060"])
    @pytest.mark.parametrize("field", ["address", "sipAddress"])
    async def test_what_can_be_told_is_told_at_once(
        self, rig: Rig, field: str, address: str
    ) -> None:
        status, told = await rig.post("/api/v1/credentials", self.body(field, address))
        assert status == 422, told
        assert told["meta"]["details"] == [
            {"field": field, "message": WHY, "type": "address_refused"}
        ]

    @pytest.mark.parametrize("field", ["address", "sipAddress"])
    async def test_a_name_is_looked_up_when_it_is_used(self, rig: Rig, field: str) -> None:
        for address in ("private.example", "trunk.example:5080", PUBLIC):
            status, told = await rig.post("/api/v1/credentials", self.body(field, address))
            assert status == 201, told

    @pytest.mark.parametrize("field", ["address", "sipAddress"])
    async def test_the_operators_own(self, rig: Rig, field: str) -> None:
        body = self.body(field, "10.0.0.1:5060")
        status, told = await rig.post("/api/v1/credentials", body, operator())
        assert status == 201, told

    @staticmethod
    def body(field: str, address: str) -> dict[str, Any]:
        body = {"name": new_id("name"), "provider": "sip", field: address}
        if field == "sipAddress":
            body |= {"provider": "twilio", "accountSid": f"AC{'0' * 32}", "authToken": "t"}
        return body


class TestTransfers:
    @pytest.mark.parametrize("scheme", ["sip", "sips"])
    @pytest.mark.parametrize(
        "address", ["127.0.0.1:5999", "10.0.0.1", "[::1]:22", "0x7f000001", "localhost", *NAMED]
    )
    async def test_refused(self, rig: Rig, scheme: str, address: str) -> None:
        self.enter(rig)
        status, told = await rig.post("/sip/transfer", self.body(f"{scheme}:bob@{address}"))
        assert (status, told) == (403, {"error": WHY, "code": "DESTINATION_NOT_ALLOWED"})
        assert rig.livekit.referred == []

    @pytest.mark.parametrize("target", ["sip:bob@trunk.example", "tel:+14155550199"])
    async def test_where_it_may_go(self, rig: Rig, target: str) -> None:
        self.enter(rig)
        status, told = await rig.post("/sip/transfer", self.body(target))
        assert status == 200, told
        assert [each.transfer_to for each in rig.livekit.referred] == [target]

    async def test_the_operator_is_free(self, rig: Rig) -> None:
        self.enter(rig)
        status, told = await rig.post(
            "/sip/transfer", self.body("sip:bob@10.0.0.1:5080"), operator()
        )
        assert status == 200, told

    @staticmethod
    def enter(rig: Rig) -> None:
        rig.livekit.rooms["theirs"] = [phone("caller")]
        rig.livekit.metadata["theirs"] = '{"auth_id": "acme"}'

    @staticmethod
    def body(target: str) -> dict[str, str]:
        return {"room_name": "theirs", "participant_identity": "caller", "transfer_to": target}
