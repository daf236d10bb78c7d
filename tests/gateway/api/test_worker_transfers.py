"""POST /internal/calls/{id}/transfer: the outcome for the worker, and what is dialled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from livekit.protocol.sip import SIPTransport
from pydantic import SecretStr

from core.events import ended
from core.legs import Leg
from core.models import Agent, AgentConfig, CallEvent, PhoneNumber, new_id, now
from core.tokens import TokenIssuer
from core.transfers import human_identity
from gateway.keys import CREDENTIALS, NUMBERS, STORE
from gateway.store.call_status import Call
from gateway.store.call_trunks import CallTrunks, OwnTrunk
from gateway.store.credentials import Vault
from gateway.store.database import Scope
from tests.conftest import bearer
from tests.support.inprocess import SECRET, Running
from tests.support.livekit_stub import LiveKitStub, Refusal, phone, running_with
from tests.support.numbers import make_number

pytestmark = pytest.mark.store

ISSUER = TokenIssuer(SECRET)
TO, FROM = "+15551230077", "+15105550123"
TCP = "SIP_TRANSPORT_TCP"


@pytest.fixture
def livekit() -> LiveKitStub:
    return LiveKitStub()


@pytest.fixture
async def gateway(tmp_path: Path, livekit: LiveKitStub) -> AsyncIterator[Running]:
    trunk = {"sip_outbound_address": "trunk.example.com", "sip_outbound_auth_username": "us"}
    blocked = {"dial_blocked_prefixes": ("+1900",)}
    async with running_with(livekit, tmp_path, **trunk, **blocked) as running:
        yield running


async def talking(gateway: Running, *, answered_s: int = 10, **changes: Any) -> Call:
    """Return an answered call; ``changes``: of the agent's configuration, or of the call."""
    fields = {name: changes.pop(name) for name in set(changes) & set(AgentConfig.model_fields)}
    config = AgentConfig(**{"name": "Ann", "transfer_number": TO, **fields})
    agent = Agent(id="greeter", version=1, config=config)
    call = await gateway.call(**{"agent": agent, **changes})
    answered = CallEvent(type="call.answered", at=now() - timedelta(seconds=answered_s))
    await gateway.store.append(call.id, [answered], "gateway")
    return call


async def ask(
    gateway: Running, call_id: str, transfer_id: str | None = None, token: str | None = None
) -> tuple[int, Any]:
    async with gateway.http.post(
        f"/internal/calls/{call_id}/transfer",
        headers=bearer(ISSUER.for_call(call_id) if token is None else token),
        json={"transferId": transfer_id or new_id("trf")},
    ) as response:
        return response.status, await response.json()


async def told(gateway: Running, call: Call) -> list[tuple[str, dict[str, Any]]]:
    events = await gateway.store.events(call.id)
    return [(e.type, e.data) for e in events if e.type not in {"call.queued", "call.answered"}]


class TestRefused:
    async def test_only_the_calls_own_worker_may_ask(self, gateway: Running) -> None:
        call, other = await talking(gateway), await talking(gateway)
        for token in ("", "x", ISSUER.for_call(other.id), ISSUER.for_worker(call.id)):
            assert (await ask(gateway, call.id, token=token))[0] == 401
        assert await told(gateway, call) == []

    @pytest.mark.parametrize("id", ["", "trf_1", "trf_" + "g" * 24, "x" * 5000, "call_" + "0" * 24])
    async def test_ids_are_of_one_form(self, gateway: Running, id: str) -> None:
        call = await talking(gateway)
        token = bearer(ISSUER.for_call(call.id))
        bodies: tuple[Any, ...] = ({"transferId": id}, {}, {"transferId": None}, [])
        for body in bodies:
            async with gateway.http.post(
                f"/internal/calls/{call.id}/transfer", headers=token, json=body
            ) as response:
                assert response.status == 422

    async def test_what_cannot_be_transferred(self, gateway: Running) -> None:
        nobody, ringing = await talking(gateway, transfer_number=None), await gateway.call()
        over, agentless = await talking(gateway), await talking(gateway, agent=None)
        end = CallEvent(type="call.ended", data=ended("completed", "user_hangup"))
        await gateway.store.append(over.id, [end], "gateway")
        config = AgentConfig(name="Ann", transfer_number=TO)
        ringing = await gateway.call(agent=Agent(id="greeter", version=1, config=config))
        for call_id, status, code in (
            (nobody.id, 409, "NO_TRANSFER_NUMBER"),
            (agentless.id, 409, "NO_TRANSFER_NUMBER"),
            (ringing.id, 409, "CALL_NOT_ANSWERED"),
            (over.id, 410, "CALL_ENDED"),
            ("call_nope", 404, "CALL_NOT_FOUND"),
        ):
            got, body = await ask(gateway, call_id)
            assert (got, body["code"]) == (status, code)
        assert [kind for kind, _ in await told(gateway, nobody)] == []


class TestWarm:
    async def test_the_human_is_dialled_once_however_often_it_is_asked(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        call = await talking(gateway, transfer_mode="warm", transfer_ringing_ms=7_500)
        id = new_id("trf")
        answers = await asyncio.gather(*(ask(gateway, call.id, id) for _ in range(5)))
        answers += [await ask(gateway, call.id, id)]
        human = human_identity(id)
        for status, body in answers:
            assert (status, body["outcome"], body["identity"]) == (200, "answered", human)
        (dialled,) = livekit.dialled
        assert (dialled.sip_number, dialled.sip_call_to) == (FROM, TO)
        assert (dialled.trunk.hostname, dialled.trunk.auth_username) == ("trunk.example.com", "us")
        assert (dialled.room_name, dialled.participant_identity) == (call.room_name, human)
        assert dict(dialled.participant_attributes) == Leg("human", call.id).attributes
        assert dialled.ringing_timeout.seconds == 8
        assert 45 <= dialled.max_call_duration.seconds <= 50, "what is left of the call's minute"
        assert await told(gateway, call) == [
            ("transfer.started", {"to": TO, "mode": "warm"}),
            ("transfer.answered", {}),
        ]

    @pytest.mark.attack
    @pytest.mark.parametrize("address", ["127.0.0.1:22", "127.1", "localhost", "10.0.0.1"])
    async def test_a_trunk_that_may_not_be_used(
        self, gateway: Running, livekit: LiveKitStub, address: str
    ) -> None:
        """The number's credential was stored before addresses were checked."""
        credential = await gateway.app[CREDENTIALS].create(
            Scope("acme"), "old", "sip", {"address": address}
        )
        number = await make_number(gateway, credential_id=credential.id)
        call = await talking(gateway, transfer_mode="warm", phone_number_id=number.id)
        status, body = await ask(gateway, call.id)
        assert (status, body["outcome"]) == (200, "not_allowed")
        assert livekit.dialled == []

    @pytest.mark.parametrize(
        ("answer", "outcome"),
        [
            (Refusal("resource_exhausted", sip_status_code="486"), "busy"),
            (Refusal("permission_denied", sip_status_code="603"), "rejected"),
            (Refusal("not_found", sip_status_code="404"), "invalid_destination"),
            (Refusal("deadline_exceeded"), "no_answer"),
            (Refusal("internal"), "failed"),
        ],
    )
    async def test_nobody_there(
        self, gateway: Running, livekit: LiveKitStub, answer: Refusal, outcome: str
    ) -> None:
        call = await talking(gateway, transfer_mode="warm")
        livekit.answer = answer
        status, body = await ask(gateway, call.id)
        assert (status, body["outcome"], body["identity"]) == (200, outcome, None)
        code = answer.meta.get("sip_status_code")
        failed = {"reason": outcome} | ({"sipStatusCode": int(code)} if code else {})
        assert (await told(gateway, call))[-1] == ("transfer.failed", failed)

    async def test_a_call_with_its_own_trunk_dials_the_human_by_it(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        """It takes precedence over its number's trunk and over the default one."""
        theirs = OwnTrunk(
            address="theirs.example.com:5070",
            username="anna",
            password=SecretStr("pw-of-anna"),
            transport="tcp",
        )
        both = await number(gateway, FROM, direction="both")
        for phone_number_id in (None, both.id):
            call = await talking(
                gateway, transfer_mode="warm", own_trunk=theirs, phone_number_id=phone_number_id
            )
            assert (await ask(gateway, call.id))[1]["outcome"] == "answered"
        for dialled in livekit.dialled:
            assert dialled.sip_number == FROM
            trunk = dialled.trunk
            assert (trunk.hostname, trunk.transport) == (theirs.address, SIPTransport.Value(TCP))
            assert (trunk.auth_username, trunk.auth_password) == ("anna", "pw-of-anna")
            dialled.ClearField("trunk")
            assert "pw-of-anna" not in str(dialled)
        assert len(livekit.dialled) == 2
        assert "pw-of-anna" not in str(await told(gateway, call))

    @pytest.mark.attack
    async def test_an_unreadable_trunk_is_not_replaced_by_another(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        call = await talking(
            gateway, transfer_mode="warm", own_trunk=OwnTrunk(address="theirs.example.com")
        )
        gateway.app[STORE]._trunks = CallTrunks(Vault([Fernet.generate_key().decode()]))
        assert (await ask(gateway, call.id))[1]["outcome"] == "failed"
        assert livekit.dialled == []

    @pytest.mark.parametrize("mode", ["warm", "cold"])
    async def test_the_destination_policy_counts(
        self, gateway: Running, livekit: LiveKitStub, mode: str
    ) -> None:
        call = await talking(gateway, transfer_mode=mode, transfer_number="+19005550123")
        id = new_id("trf")
        for _ in range(2):
            assert (await ask(gateway, call.id, id))[1]["outcome"] == "not_allowed"
        assert livekit.dialled == [] and livekit.referred == []
        assert (await told(gateway, call))[-1] == ("transfer.failed", {"reason": "not_allowed"})

    @pytest.mark.parametrize(("limit", "outcome"), [(1, "not_allowed"), (2, "answered")])
    async def test_the_human_is_one_more_call_of_the_tenants(
        self, tmp_path: Path, livekit: LiveKitStub, limit: int, outcome: str
    ) -> None:
        settings = {"sip_outbound_address": "trunk.example.com", "max_concurrent_calls": limit}
        async with running_with(livekit, tmp_path, **settings) as gateway:
            call = await talking(gateway, transfer_mode="warm")
            assert (await ask(gateway, call.id))[1]["outcome"] == outcome
            assert len(livekit.dialled) == limit - 1
            assert (await gateway.store.load("acme", "switchroom")).legs == limit

    async def test_a_caller_is_handed_on_from_the_number_they_called(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        inbound_only = await number(gateway, "+15105550177", direction="inbound")
        both = await number(gateway, "+15105550188", direction="both")
        foreign = await number(gateway, "+15105550199", direction="both", auth_id="rival")
        caller: dict[str, Any] = {
            "direction": "inbound",
            "from_number": "+15550001",
            "transfer_mode": "warm",
        }
        for called, outcome in ((both, "answered"), (inbound_only, "not_allowed")):
            call = await talking(
                gateway, phone_number_id=called.id, to_number=called.phone_number, **caller
            )
            assert (await ask(gateway, call.id))[1]["outcome"] == outcome
        (dialled,) = livekit.dialled
        assert dialled.sip_number == both.phone_number
        web = await talking(gateway, direction="web", from_number=None, transfer_mode="warm")
        assert (await ask(gateway, web.id))[1]["outcome"] == "not_allowed"
        await gateway.app[NUMBERS].bind(Scope(None), foreign.id, "greeter")
        assert (await ask(gateway, web.id))[1]["outcome"] == "not_allowed", "another tenant's"
        await gateway.app[NUMBERS].bind(Scope(None), both.id, "greeter")
        assert (await ask(gateway, web.id))[1]["outcome"] == "answered"


async def number(gateway: Running, digits: str, **changes: Any) -> PhoneNumber:
    values: dict[str, Any] = {"auth_id": "acme", "country": "US", "provider": "sip"}
    values |= {"status": "active", "created_at": now(), **changes}
    kept = PhoneNumber(id=new_id("num"), phone_number=digits, **values)
    await gateway.app[NUMBERS].insert(kept)
    return kept


class TestCold:
    async def test_the_phone_is_sent_there_and_the_call_is_over(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        call, id = await talking(gateway), new_id("trf")
        livekit.enter(call.room_name, phone(call.participant_identity))
        assert (await ask(gateway, call.id, id))[1]["outcome"] == "transferred"
        (referred,) = livekit.referred
        assert referred.transfer_to == f"tel:{TO}"
        assert referred.participant_identity == call.participant_identity
        assert await told(gateway, call) == [
            ("transfer.started", {"to": TO, "mode": "cold"}),
            ("call.transferred", {"to": TO, "mode": "cold"}),
            ("call.ended", {"status": "completed", "reason": "call_transfer"}),
        ]

    @pytest.mark.parametrize(
        ("answer", "outcome"),
        [
            (Refusal("resource_exhausted", sip_status_code="486"), "busy"),
            (Refusal("permission_denied", sip_status_code="603"), "rejected"),
            (Refusal("unimplemented", sip_status_code="405"), "failed"),
            (Refusal("not_found"), "failed"),
        ],
    )
    async def test_it_will_not_go(
        self, gateway: Running, livekit: LiveKitStub, answer: Refusal, outcome: str
    ) -> None:
        call = await talking(gateway)
        livekit.answer = answer
        assert (await ask(gateway, call.id))[1]["outcome"] == outcome
        kept = await gateway.store.call(Scope(None), call.id)
        assert kept is not None and kept.status == "in-progress"

    async def test_an_unknown_outcome_is_read_from_the_room(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        livekit.answer = Refusal("deadline_exceeded")
        gone, here = await talking(gateway), await talking(gateway)
        livekit.enter(here.room_name, phone(here.participant_identity))
        answers = await asyncio.gather(ask(gateway, gone.id), ask(gateway, here.id))
        assert [body["outcome"] for _, body in answers] == ["transferred", "no_answer"]


class TestAskedAfterAgain:
    """A worker repeats a request that it sent to another gateway, which is gone."""

    async def begun(self, gateway: Running, mode: str, *events: str) -> tuple[Call, str]:
        call, id = await talking(gateway, transfer_mode=mode), new_id("trf")
        at = now() - timedelta(seconds=8)
        facts = {"transfer.failed": {"reason": "busy"}}
        told = [
            CallEvent(id=f"{id}_{type}", type=type, at=at, data=facts.get(type, {}))
            for type in ("transfer.started", *events)
        ]
        await gateway.store.append(call.id, told, "gateway")
        return call, id

    @pytest.mark.parametrize(
        ("mode", "event", "outcome"),
        [
            ("warm", "transfer.answered", "answered"),
            ("warm", "transfer.failed", "busy"),
            ("cold", "call.transferred", "transferred"),
        ],
    )
    async def test_the_timeline_knows(
        self, gateway: Running, livekit: LiveKitStub, mode: str, event: str, outcome: str
    ) -> None:
        call, id = await self.begun(gateway, mode, event)
        assert (await ask(gateway, call.id, id))[1]["outcome"] == outcome
        assert livekit.dialled == [] and livekit.referred == []

    async def test_the_room_knows(self, gateway: Running, livekit: LiveKitStub) -> None:
        up, id_up = await self.begun(gateway, "warm")
        attributes = {"sip.callID": "SCL", "sip.callStatus": "active"}
        livekit.enter(up.room_name, phone(human_identity(id_up), **attributes))
        gone, id_gone = await self.begun(gateway, "warm")
        sent, id_sent = await self.begun(gateway, "cold")
        for call, id, outcome in (
            (up, id_up, "answered"),
            (gone, id_gone, "failed"),
            (sent, id_sent, "transferred"),
        ):
            assert (await ask(gateway, call.id, id))[1]["outcome"] == outcome
        assert livekit.dialled == [] and livekit.referred == []

    async def test_another_calls_id_is_nothing(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        _, id = await self.begun(gateway, "warm", "transfer.answered")
        other = await talking(gateway, transfer_mode="warm")
        assert (await ask(gateway, other.id, id))[1]["outcome"] == "failed"
        assert livekit.dialled == []
