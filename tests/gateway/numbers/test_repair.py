"""Attachments that fail halfway are undone, and differences from LiveKit are repaired."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from livekit.protocol.sip import SIPDispatchRuleInfo, SIPInboundTrunkInfo

from core.models import PhoneNumber, now
from gateway.keys import NUMBERS
from gateway.numbers.provider import ProviderRef
from gateway.numbers.repair import Repairs
from sip.dispatch import dispatch_rule
from sip.trunks import inbound_trunk
from tests.support.number_rig import ACCOUNT, API, NUMBER, OFFICE, TWILIO, V1, Rig, code, number_rig

pytestmark = pytest.mark.store

NOTHING = Repairs()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with number_rig(tmp_path) as rig:
        # The gateway's own first round is over before there is anything to repair.
        assert await rig.repair.reconcile() == NOTHING
        yield rig


# Each step of attaching a Twilio number, and of buying one.
SIP_STEPS = ["CreateSIPInboundTrunk", "CreateSIPDispatchRule"]
TRUNK_STEPS = [
    "GET /v1/Trunks",
    "POST /v1/Trunks$",
    "GET .*/OriginationUrls",
    "POST .*/OriginationUrls",
    "POST .*/PhoneNumbers$",
]
BUY_STEPS = ["POST .*/IncomingPhoneNumbers.json"]


class TestRollback:
    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("step", [*SIP_STEPS, *TRUNK_STEPS])
    async def test_attaching(self, rig: Rig, step: str, late: bool) -> None:
        row = await self.start(rig)
        former = dict(row)
        faults = rig.sip.faults if step in SIP_STEPS else rig.twilio.faults
        fault = faults.fail(step, late=late)
        answer = await rig.attach("twilio", credentialsRef="main", agentId="greeter")
        assert fault.hit.is_set()
        wanted = (500, "LIVEKIT_ERROR") if step in SIP_STEPS else (503, "PROVIDER_UNAVAILABLE")
        assert (answer.status, code(answer)) == wanted
        await self.is_undone(rig)
        assert row == former
        # A second attempt succeeds.
        faults.clear()
        await rig.attached("twilio", credentialsRef="main", agentId="greeter")

    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("step", [*SIP_STEPS, *BUY_STEPS, TRUNK_STEPS[-1]])
    async def test_buying(self, rig: Rig, step: str, late: bool) -> None:
        """A number that was bought but cannot be attached is released."""
        await rig.credential(TWILIO)
        rig.twilio.offer("+14155550100")
        faults = rig.sip.faults if step in SIP_STEPS else rig.twilio.faults
        fault = faults.fail(step, late=late)
        answer = await rig.api.post(V1, json={})
        assert fault.hit.is_set()
        assert answer.status in (500, 503)
        assert rig.twilio.numbers == {}
        await self.is_undone(rig)

    async def test_the_gateway_is_told_to_stop(self, rig: Rig) -> None:
        row = await self.start(rig)
        former = dict(row)
        fault = rig.twilio.fail("POST .*/PhoneNumbers$", late=True, hang=True)
        asking = asyncio.create_task(rig.attach("twilio", credentialsRef="main"))
        await asyncio.wait_for(fault.hit.wait(), 5)
        rig.twilio.faults.clear()
        await rig.provisioner.drain(0)
        answer = await asking
        assert (answer.status, code(answer)) == (503, "UNAVAILABLE")
        await self.is_undone(rig)
        assert row == former

    async def test_the_client_goes_away(self, rig: Rig) -> None:
        """A client that disconnects does not leave a number half attached."""
        fault = rig.sip.faults.fail("CreateSIPInboundTrunk", hang=True, times=1)
        asking = asyncio.create_task(rig.attach())
        await asyncio.wait_for(fault.hit.wait(), 5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        (row,) = await rig.rows()
        assert row.status == "attaching"
        busy = await rig.api.request("DELETE", f"{API}/{row.id}")
        assert (busy.status, code(busy)) == (409, "NUMBER_BUSY")
        # The reconciler leaves alone what its own gateway is still attaching.
        assert await rig.repair.reconcile() == NOTHING
        await rig.provisioner.drain(0)
        await self.is_undone(rig)

    async def test_the_agent_is_deleted_meanwhile(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        agent = await rig.agent()
        put_rule = rig.provisioner.objects.put_rule

        async def slowly(number: PhoneNumber, trunk_id: str, there: Any = None) -> str:
            assert (await rig.api.request("DELETE", f"/v1/agents/{agent}")).status == 200
            return await put_rule(number, trunk_id, there)

        monkeypatch.setattr(rig.provisioner.objects, "put_rule", slowly)
        answer = await rig.attach(agentId=agent)
        assert (answer.status, code(answer)) == (404, "AGENT_NOT_FOUND")
        await self.is_undone(rig)

    async def test_livekit_is_away(self, rig: Rig) -> None:
        """No row is stored, so nothing blocks a later attempt."""
        rig.sip.faults.fail("ListSIPInboundTrunk", status=503)
        answer = await rig.attach()
        assert answer.status in (500, 503)
        assert await rig.rows() == []

    async def test_livekit_goes_away_half_way(self, rig: Rig) -> None:
        rig.sip.faults.fail("CreateSIPDispatchRule|DeleteSIP")
        answer = await rig.attach()
        assert (answer.status, code(answer)) == (500, "LIVEKIT_ERROR")
        (row,) = await rig.rows()
        assert row.status == "detaching"
        again = await rig.attach()
        assert (again.status, code(again)) == (409, "NUMBER_ATTACHED")
        assert await rig.repair.reconcile() == Repairs(failed=1)
        rig.sip.faults.clear()
        assert await rig.repair.reconcile() == Repairs(undone=1)
        await self.is_undone(rig)

    async def start(self, rig: Rig) -> dict[str, Any]:
        await rig.credential(TWILIO)
        app = "AP" + "3" * 32
        return rig.twilio.give(ACCOUNT, NUMBER, voice_application_sid=app)

    async def is_undone(self, rig: Rig) -> None:
        assert await rig.rows() == []
        assert rig.sip.names == [[], []]
        assert await rig.repair.reconcile() == NOTHING


class TestDetach:
    async def test_livekit_is_away(self, rig: Rig) -> None:
        view = await rig.attached(agentId="greeter")
        rig.sip.faults.fail("DeleteSIPTrunk")
        answer = await rig.api.request("DELETE", f"{API}/{view['id']}")
        assert (answer.status, code(answer)) == (500, "LIVEKIT_ERROR")
        shown = (await rig.api.get(f"{API}/{view['id']}")).body["data"]
        assert (shown["status"], shown["agentId"]) == ("detaching", None)
        changed = await rig.api.request("PATCH", f"{API}/{view['id']}", json={"agentId": "greeter"})
        assert (changed.status, code(changed)) == (409, "NUMBER_BUSY")
        rig.sip.faults.clear()
        assert await rig.repair.reconcile() == Repairs(undone=1)
        assert (await rig.rows(), rig.sip.names) == ([], [[], []])

    async def test_again_by_hand(self, rig: Rig) -> None:
        view = await rig.attached()
        rig.sip.faults.fail("DeleteSIPDispatchRule", times=1)
        for status in (500, 200, 404):
            assert (await rig.api.request("DELETE", f"{API}/{view['id']}")).status == status

    async def test_many_at_once(self, rig: Rig) -> None:
        view = await rig.attached()
        requests = [rig.api.request("DELETE", f"{API}/{view['id']}") for _ in range(5)]
        statuses = sorted(answer.status for answer in await asyncio.gather(*requests))
        assert statuses[0] == 200
        assert set(statuses[1:]) <= {404, 409}

    async def test_twilio_is_away(self, rig: Rig) -> None:
        await rig.credential(TWILIO)
        row = rig.twilio.give(ACCOUNT, NUMBER)
        view = await rig.attached("twilio", credentialsRef="main")
        rig.twilio.fail(".", status=503)
        answer = await rig.api.request("DELETE", f"{V1}/{view['id']}")
        assert (answer.status, code(answer)) == (503, "PROVIDER_UNAVAILABLE")
        # Calls still come in, so the trunk and the rule for them stay.
        assert [len(names) for names in rig.sip.names] == [1, 1]
        rig.twilio.faults.clear()
        assert await rig.repair.reconcile() == Repairs(undone=1)
        assert row["trunk_sid"] is None
        assert (await rig.rows(), rig.sip.names) == ([], [[], []])

    @pytest.mark.parametrize("why", ["revoked", "sold"])
    async def test_twilio_refuses_for_good(self, rig: Rig, why: str) -> None:
        await rig.credential(TWILIO)
        row = rig.twilio.give(ACCOUNT, NUMBER)
        view = await rig.attached("twilio", credentialsRef="main")
        if why == "revoked":
            rig.twilio.accounts[ACCOUNT] = "another-token"
        else:
            del rig.twilio.numbers[row["sid"]]
        assert (await rig.api.request("DELETE", f"{API}/{view['id']}")).status == 200
        assert (await rig.rows(), rig.sip.names) == ([], [[], []])


class TestDrift:
    async def test_nothing_to_do(self, rig: Rig) -> None:
        await rig.credential(OFFICE)
        await rig.attached(credentialsRef="office")
        assert await rig.repair.reconcile() == NOTHING

    @pytest.mark.parametrize("what", ["trunk", "rule", "both"])
    async def test_deleted_by_hand(self, rig: Rig, what: str) -> None:
        await rig.credential(OFFICE)
        view = await rig.attached(credentialsRef="office")
        registry = rig.sip.registry
        if what != "rule":
            registry.inbound.clear()
        if what != "trunk":
            registry.rules.clear()
        assert await rig.repair.reconcile() == Repairs(restored=1)
        (trunk,), (rule,), (row,) = (
            registry.inbound.values(),
            registry.rules.values(),
            await rig.rows(),
        )
        assert (row.trunk_id, row.rule_id) == (trunk.sip_trunk_id, rule.sip_dispatch_rule_id)
        assert list(rule.trunk_ids) == [trunk.sip_trunk_id]
        assert list(trunk.allowed_addresses) == ["203.0.113.0/24"]
        assert (trunk.name, rule.name) == (view["id"], view["id"])
        assert await rig.repair.reconcile() == NOTHING

    async def test_changed_by_hand(self, rig: Rig) -> None:
        await rig.attached()
        (trunk,), (rule,) = rig.sip.registry.inbound.values(), rig.sip.registry.rules.values()
        trunk.numbers[:] = ["+15550100"]
        rule.room_config.agents[0].agent_name = "somebody"
        assert await rig.repair.reconcile() == Repairs(restored=1)
        (trunk,), (rule,) = rig.sip.registry.inbound.values(), rig.sip.registry.rules.values()
        assert list(trunk.numbers) == [NUMBER, NUMBER[1:]]
        assert rule.room_config.agents[0].agent_name == "switchroom"

    async def test_a_rule_of_before_that_named_rooms_after_their_callers(self, rig: Rig) -> None:
        """The rule is changed in place, so that an incoming call finds a rule at any moment."""
        await rig.attached()
        (before,) = rig.sip.registry.rules.values()
        old = before.sip_dispatch_rule_id
        before.rule.dispatch_rule_individual.room_prefix = "in"
        assert await rig.repair.reconcile() == Repairs(restored=1)
        (rule,) = rig.sip.registry.rules.values()
        assert rule.sip_dispatch_rule_id == old
        assert rule.rule.WhichOneof("rule") == "dispatch_rule_callee"
        assert await rig.repair.reconcile() == NOTHING

    async def test_of_nobody(self, rig: Rig) -> None:
        """Our trunk and rule without a row are removed; those that others made are not."""
        kept = await rig.attached()
        gone, theirs = (
            _number(id=f"num_{name}", phone_number=f"+1415555020{turn}")
            for turn, name in enumerate(("gone", "theirs"))
        )
        registry = rig.sip.registry
        for number, agent_name in ((gone, "switchroom"), (theirs, "staging")):
            trunk = registry.create_inbound(inbound_trunk(number, agent_name=agent_name).trunk)
            rule = dispatch_rule(number, trunk.sip_trunk_id, agent_name=agent_name)
            registry.create_rule(rule.dispatch_rule)
        trunk = registry.create_inbound(SIPInboundTrunkInfo(name="num_x", numbers=["+15550100"]))
        by_hand = SIPDispatchRuleInfo(name="num_x", trunk_ids=[trunk.sip_trunk_id])
        by_hand.rule.dispatch_rule_direct.room_name = "room"
        registry.create_rule(by_hand)
        assert await rig.repair.reconcile() == Repairs(removed=2)
        assert rig.sip.names == [sorted([kept["id"], "num_theirs", "num_x"])] * 2

    async def test_one_too_many(self, rig: Rig) -> None:
        await rig.attached()
        (row,) = await rig.rows()
        (trunk,) = rig.sip.registry.inbound.values()
        second = SIPInboundTrunkInfo()
        second.CopyFrom(trunk)
        second.sip_trunk_id = "ST_second"
        rig.sip.registry.inbound["ST_second"] = second
        assert await rig.repair.reconcile() == Repairs(removed=1)
        assert list(rig.sip.registry.inbound) == [row.trunk_id]

    async def test_livekit_is_away(self, rig: Rig) -> None:
        await rig.attached()
        rig.sip.faults.fail("List", status=503)
        assert await rig.repair.reconcile() == Repairs(failed=1)

    async def test_one_that_cannot_be_mended_does_not_keep_the_others(self, rig: Rig) -> None:
        await rig.attached()
        await rig.attached(phoneNumber="+14155550124")
        rig.sip.registry.inbound.clear()
        rig.sip.faults.fail("CreateSIPInboundTrunk", times=1)
        assert await rig.repair.reconcile() == Repairs(restored=1, failed=1)
        assert await rig.repair.reconcile() == Repairs(restored=1)


class TestLeftBehind:
    """Rows of a gateway that died, or that is still working on them."""

    @pytest.mark.parametrize("status", ["attaching", "detaching"])
    async def test_by_a_gateway_that_died(self, rig: Rig, status: Any) -> None:
        held = ProviderRef(held_by="another:8080", held_until=time.time() - 3600)
        number = _number(status=status, provider_ref=held.wire())
        await rig.own.app[NUMBERS].insert(number)
        rig.sip.registry.create_inbound(inbound_trunk(number, agent_name="switchroom").trunk)
        assert await rig.repair.reconcile() == Repairs(undone=1)
        assert (await rig.rows(), rig.sip.names) == ([], [[], []])

    async def test_by_a_gateway_that_is_at_it(self, rig: Rig) -> None:
        held = ProviderRef(held_by="another:8080", held_until=time.time() + 60)
        number = _number(status="attaching", provider_ref=held.wire())
        await rig.own.app[NUMBERS].insert(number)
        rig.sip.registry.create_inbound(inbound_trunk(number, agent_name="switchroom").trunk)
        assert await rig.repair.reconcile() == NOTHING
        assert rig.sip.names == [[number.id], []]

    async def test_after_a_purchase(self, rig: Rig) -> None:
        credential = await rig.credential(TWILIO)
        number = _number(
            status="attaching",
            provider="twilio",
            credential_id=credential,
            provider_ref=ProviderRef(bought=True, release=True).wire(),
        )
        await rig.own.app[NUMBERS].insert(number)
        rig.twilio.give(ACCOUNT, NUMBER, friendly_name=number.id)
        assert await rig.repair.reconcile() == Repairs(undone=1)
        assert rig.twilio.numbers == {}

    async def test_a_number_that_was_not_bought_for_it_stays(self, rig: Rig) -> None:
        credential = await rig.credential(TWILIO)
        number = _number(
            status="attaching",
            provider="twilio",
            credential_id=credential,
            provider_ref=ProviderRef(bought=True, release=True).wire(),
        )
        await rig.own.app[NUMBERS].insert(number)
        rig.twilio.give(ACCOUNT, NUMBER, friendly_name="the boss")
        assert await rig.repair.reconcile() == Repairs(undone=1)
        assert len(rig.twilio.numbers) == 1


async def test_a_round_that_fails_is_followed_by_another(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Queue[None]()

    async def listing() -> None:
        asked.put_nowait(None)
        raise KeyError("bug")

    monkeypatch.setattr(rig.provisioner.objects, "listing", listing)
    repairing = asyncio.create_task(rig.repair.run(period_s=0))
    async with asyncio.timeout(10):
        for _ in range(3):
            await asked.get()
    repairing.cancel()
    await asyncio.wait({repairing})


def _number(**changes: Any) -> PhoneNumber:
    values: dict[str, Any] = {
        "id": "num_left",
        "auth_id": "acme",
        "phone_number": NUMBER,
        "country": "US",
        "provider": "sip",
        "direction": "both",
        "status": "active",
        "created_at": now(),
    }
    return PhoneNumber(**{**values, **changes})
