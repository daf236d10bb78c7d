"""A tenant's number of provider sip waits for an operator; other tenants do not learn of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from livekit.protocol.sip import SIPInboundTrunkInfo

from core.models import PhoneNumber, new_id, now
from dev.stack.environment import GivenSettings
from gateway.keys import NUMBERS
from gateway.numbers.provider import ProviderRef
from gateway.numbers.repair import Repairs
from gateway.store.database import Scope
from gateway.store.numbers import MAX_PENDING
from sip.trunks import inbound_trunk
from tests.conftest import ACME, RIVAL, Answered, operator
from tests.support.number_rig import (
    ACCOUNT,
    API,
    ATTACH,
    NUMBER,
    OFFICE,
    TWILIO,
    V1,
    Rig,
    code,
    number_rig,
)

pytestmark = pytest.mark.store

TENANTS = {"acme": ACME, "rival": RIVAL}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    default = GivenSettings().sip_numbers_need_approval
    async with number_rig(tmp_path, sip_numbers_need_approval=default) as rig:
        yield rig


async def approve(rig: Rig, number_id: str, headers: dict[str, str] | None = None) -> Answered:
    return await rig.api.post(f"{API}/{number_id}/approve", headers=headers or operator())


async def status_of(rig: Rig, number_id: str) -> str:
    answer = await rig.api.get(f"{API}/{number_id}", headers=operator())
    return str(answer.body["data"]["status"])


def claim(n: int) -> PhoneNumber:
    return PhoneNumber(
        id=new_id("num"),
        auth_id="acme",
        phone_number=f"+1415555{7000 + n}",
        country="US",
        provider="sip",
        direction="both",
        status="pending",
        created_at=now(),
    )


def untold(view: dict[str, Any]) -> dict[str, Any]:
    """Return the view without the fields that differ between records."""
    return {name: view[name] for name in view if name not in {"id", "createdAt", "authId"}}


class TestClaim:
    async def test_waits_and_livekit_knows_nothing_of_it(self, rig: Rig) -> None:
        await rig.credential(OFFICE)
        agent = await rig.agent()
        answer = await rig.attach(credentialsRef="office", agentId=agent)
        assert answer.status == 201
        view = answer.body["data"]
        assert (view["status"], view["agentId"], view["authId"]) == ("pending", agent, "acme")
        assert view["inboundCallsEnabled"] is False
        assert rig.sip.names == [[], []]
        for path in (f"{API}/{view['id']}", f"{V1}/{view['id']}"):
            body = (await rig.api.get(path)).body
            assert body.get("data", body) == view
        assert await rig.repair.reconcile() == Repairs()
        assert await status_of(rig, view["id"]) == "pending"

    @pytest.mark.attack
    @pytest.mark.parametrize("theirs", ["nobody's", "claimed", "an operator's", "approved"])
    async def test_no_answer_tells_of_anothers(self, rig: Rig, theirs: str) -> None:
        """A number that others have gets the same answer as one that nobody has."""
        wanted = untold(await rig.attached(phoneNumber="+14155550199"))
        if theirs == "an operator's":
            await rig.attached(headers=operator())
        elif theirs != "nobody's":
            claimed = await rig.attached(headers=RIVAL)
            if theirs == "approved":
                assert (await approve(rig, claimed["id"])).status == 200
        view = await rig.attached()
        assert untold(view) == {**wanted, "phoneNumber": NUMBER}
        again = await rig.attach()
        assert (again.status, code(again)) == (409, "NUMBER_ATTACHED")
        listed = (await rig.api.get(API)).body["data"]
        assert {each["authId"] for each in listed} == {"acme"}

    @pytest.mark.attack
    async def test_one_claim_a_tenant_however_many_at_once(self, rig: Rig) -> None:
        answers = await asyncio.gather(
            *(rig.attach(headers=ACME if turn % 2 else RIVAL) for turn in range(10))
        )
        assert sorted(answer.status for answer in answers) == [201] * 2 + [409] * 8
        assert rig.sip.names == [[], []]

    @pytest.mark.attack
    async def test_so_many_a_tenant_however_many_at_once(self, rig: Rig) -> None:
        first = await rig.attached()
        for n in range(1, MAX_PENDING - 2):
            await rig.own.app[NUMBERS].insert(claim(n))
        late = [f"+1415555{8000 + n}" for n in range(6)]
        answers = await asyncio.gather(*(rig.attach(phoneNumber=each) for each in late))
        assert sorted(answer.status for answer in answers) == [201] * 2 + [429] * 4
        refused = next(answer for answer in answers if answer.status == 429)
        assert code(refused) == "PENDING_LIMIT"
        assert int(refused.headers["Retry-After"]) > 0
        again = await rig.attach()
        assert (again.status, code(again)) == (409, "NUMBER_ATTACHED")
        # Other tenants' claims and an operator's numbers do not count.
        await rig.attached(headers=RIVAL)
        await rig.attached(phoneNumber="+14155559000", headers=operator())
        gone = await rig.api.request("DELETE", f"{API}/{first['id']}")
        assert gone.status == 200
        answers = [await rig.attach(phoneNumber=f"+1415555900{n}") for n in (1, 2)]
        assert [answer.status for answer in answers] == [201, 429]

    @pytest.mark.attack
    async def test_calls_nobody(self, rig: Rig) -> None:
        agent = await rig.agent()
        view = await rig.attached(agentId=agent)
        call = {"agentId": agent, "toNumber": "+15551234567"}
        session = {**call, "channel": "voice", "fromNumber": NUMBER}
        for path, body in (
            ("/v1/calls", call),
            ("/v1/calls", {**call, "fromNumberId": view["id"]}),
            ("/api/v1/sessions/dispatch", session),
        ):
            answer = await rig.api.post(path, json=body)
            assert (answer.status, code(answer)) == (403, "FROM_NUMBER_NOT_ALLOWED"), path

    async def test_is_changed_and_withdrawn(self, rig: Rig) -> None:
        agent = await rig.agent()
        path = f"{API}/{(await rig.attached())['id']}"
        changes = {"agentId": agent, "direction": "outbound"}
        changed = (await rig.api.request("PATCH", path, json=changes)).body["data"]
        assert (changed["status"], changed["agentId"]) == ("pending", agent)
        assert (await rig.api.request("DELETE", path, headers=RIVAL)).status == 404
        assert (await rig.api.request("DELETE", path)).body["data"]["status"] == "detached"
        assert (await rig.api.get(path)).status == 404

    async def test_of_an_agent_that_is_deleted(self, rig: Rig) -> None:
        agent = await rig.agent()
        view = await rig.attached(agentId=agent)
        assert (await rig.api.request("DELETE", f"/v1/agents/{agent}")).status == 200
        approved = (await approve(rig, view["id"])).body["data"]
        assert (approved["status"], approved["agentId"]) == ("active", None)

    async def test_operators_find_what_waits(self, rig: Rig) -> None:
        ids = [(await rig.attached(headers=headers))["id"] for headers in (ACME, RIVAL)]
        await approve(rig, ids[0])
        for status, wanted in (("pending", ids[1]), ("active", ids[0])):
            listed = await rig.api.get(f"{API}?status={status}", headers=operator())
            assert [each["id"] for each in listed.body["data"]] == [wanted]
            assert listed.body["meta"]["total"] == 1

    async def test_twilio_numbers_are_proven_by_the_account(self, rig: Rig) -> None:
        await rig.credential(TWILIO)
        body = {"provider": "twilio", "phoneNumber": NUMBER, "credentialsRef": "main"}
        refused = await rig.api.post(ATTACH, json=body)
        assert (refused.status, code(refused)) == (422, "NUMBER_NOT_IN_ACCOUNT")
        # Another tenant's claim does not stop one who can prove the number.
        await rig.attached(headers=RIVAL)
        rig.twilio.give(ACCOUNT, NUMBER)
        assert (await rig.attached("twilio", credentialsRef="main"))["status"] == "active"

    async def test_an_operator_needs_no_approval(self, rig: Rig) -> None:
        claimed = await rig.attached()
        assert (await rig.attached(headers=operator()))["status"] == "active"
        refused = await approve(rig, claimed["id"])
        assert (refused.status, code(refused)) == (409, "NUMBER_ATTACHED")
        again = await rig.attach(headers=operator())
        assert (again.status, code(again)) == (409, "NUMBER_ATTACHED")

    async def test_nor_does_an_installation_without_tenants(self, tmp_path: Path) -> None:
        async with number_rig(tmp_path, auth_required=False, sip_numbers_need_approval=True) as rig:
            assert (await rig.attached(headers={}))["status"] == "active"


class TestApproval:
    async def test_makes_it_a_number_like_any_other(self, rig: Rig) -> None:
        await rig.credential(OFFICE)
        agent = await rig.agent()
        view = await rig.attached(credentialsRef="office", agentId=agent)
        answer = await approve(rig, view["id"])
        assert answer.status == 200
        wanted = {**view, "status": "active", "inboundCallsEnabled": True}
        assert answer.body["data"] == wanted == (await rig.api.get(f"{V1}/{view['id']}")).body
        (trunk,), (rule,) = rig.sip.registry.inbound.values(), rig.sip.registry.rules.values()
        assert list(trunk.allowed_addresses) == ["203.0.113.0/24"]
        assert (trunk.name, rule.name) == (view["id"], view["id"])
        assert await rig.repair.reconcile() == Repairs()
        (row,) = await rig.rows()
        assert ProviderRef.model_validate(row.provider_ref) == ProviderRef()
        # A second approval changes nothing.
        assert (await approve(rig, view["id"])).body["data"] == wanted
        assert (await rig.api.request("DELETE", f"{API}/{view['id']}")).status == 200
        assert rig.sip.names == [[], []]

    @pytest.mark.attack
    @pytest.mark.parametrize("tenant", TENANTS)
    @pytest.mark.parametrize("whose", ["acme", "rival", "nobody"])
    async def test_is_no_tenants(self, rig: Rig, tenant: str, whose: str) -> None:
        number_id = "num_nothing"
        if whose in TENANTS:
            number_id = (await rig.attached(headers=TENANTS[whose]))["id"]
        answer = await approve(rig, number_id, TENANTS[tenant])
        assert (answer.status, code(answer)) == (403, "OPERATOR_REQUIRED")
        assert answer.body["message"] == "Only an operator approves numbers"
        if whose in TENANTS:
            assert await status_of(rig, number_id) == "pending"

    async def test_of_nothing(self, rig: Rig) -> None:
        answer = await approve(rig, "num_nothing")
        assert (answer.status, code(answer)) == (404, "NUMBER_NOT_FOUND")

    @pytest.mark.attack
    async def test_of_one_claim_of_several(self, rig: Rig) -> None:
        mine, theirs = [(await rig.attached(headers=h))["id"] for h in TENANTS.values()]
        answers = await asyncio.gather(*(approve(rig, n) for n in (mine, theirs) for _ in range(3)))
        assert {answer.status for answer in answers} <= {200, 409}
        statuses = [await status_of(rig, number_id) for number_id in (mine, theirs)]
        assert sorted(statuses) == ["active", "pending"]
        waits = mine if statuses[0] == "pending" else theirs
        refused = await approve(rig, waits)
        assert (refused.status, code(refused)) == (409, "NUMBER_ATTACHED")
        # Once the number is detached, the other claim can be approved.
        has = theirs if waits == mine else mine
        gone = await rig.api.request("DELETE", f"{API}/{has}", headers=operator())
        assert gone.status == 200
        assert (await approve(rig, waits)).status == 200

    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("step", ["CreateSIPInboundTrunk", "CreateSIPDispatchRule"])
    async def test_that_fails_leaves_the_claim(self, rig: Rig, step: str, late: bool) -> None:
        agent = await rig.agent()
        view = await rig.attached(agentId=agent)
        fault = rig.sip.faults.fail(step, late=late)
        answer = await approve(rig, view["id"])
        assert fault.hit.is_set()
        assert (answer.status, code(answer)) == (500, "LIVEKIT_ERROR")
        assert rig.sip.names == [[], []]
        assert (await rig.api.get(f"{API}/{view['id']}")).body["data"] == view
        rig.sip.faults.clear()
        assert (await approve(rig, view["id"])).body["data"]["agentId"] == agent

    async def test_by_a_gateway_that_died(self, rig: Rig) -> None:
        view = await rig.attached(agentId=await rig.agent())
        numbers = rig.own.app[NUMBERS]
        held = ProviderRef(held_by="another:8080", held_until=time.time() - 3600, claim=True)
        values = {"status": "attaching", "provider_ref": held.wire()}
        (claim,), _ = await numbers.page(Scope(None), limit=1, offset=0)
        assert await numbers.move(Scope(None), view["id"], {"pending"}, values)
        rig.sip.registry.create_inbound(inbound_trunk(claim, agent_name="switchroom").trunk)
        assert await rig.repair.reconcile() == Repairs(undone=1)
        assert rig.sip.names == [[], []]
        assert (await rig.api.get(f"{API}/{view['id']}")).body["data"] == view

    async def test_undone_by_a_gateway_that_died_and_withdrawn_then(self, rig: Rig) -> None:
        view = await rig.attached()
        held = ProviderRef(claim=True)
        values = {"status": "detaching", "provider_ref": held.wire()}
        assert await rig.own.app[NUMBERS].move(Scope(None), view["id"], {"pending"}, values)
        assert (await rig.api.request("DELETE", f"{API}/{view['id']}")).status == 200
        assert (await rig.api.get(f"{API}/{view['id']}")).status == 404

    async def test_a_trunk_with_a_claims_label_is_removed(self, rig: Rig) -> None:
        await rig.attached()
        (claim,), _ = await rig.own.app[NUMBERS].page(Scope(None), limit=1, offset=0)
        trunk: SIPInboundTrunkInfo = inbound_trunk(claim, agent_name="switchroom").trunk
        rig.sip.registry.create_inbound(trunk)
        assert await rig.repair.reconcile() == Repairs(removed=1)
        assert rig.sip.names == [[], []]


class TestTrusted:
    async def test_first_come_first_served(self, tmp_path: Path) -> None:
        async with number_rig(tmp_path, sip_numbers_need_approval=False) as rig:
            assert (await rig.attached())["status"] == "active"
            answer = await rig.attach(headers=RIVAL)
            assert (answer.status, code(answer)) == (409, "NUMBER_ATTACHED")
