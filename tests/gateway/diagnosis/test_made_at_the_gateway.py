"""Failures made to happen at a gateway with a stand-in for LiveKit, and their diagnoses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.jobs import Heartbeat
from core.models import CallEvent
from gateway.keys import SETTINGS
from gateway.store.call_status import Call
from tests.conftest import ACME, RIVAL, Gateway, operator
from tests.gateway.api.test_livekit_webhook import deliver
from tests.gateway.api.test_worker_transfers import ask, talking
from tests.gateway.calls.test_inbound import Caller, number, sent_away
from tests.gateway.calls.test_reconciler import old_call, round_of
from tests.support.diagnosis import diagnosis_of
from tests.support.inprocess import Running, running, settings_in
from tests.support.livekit_stub import LiveKitStub, Refusal, phone, running_with
from tests.support.numbers import make_agent, make_number
from tests.support.sip_call_rig import body

pytestmark = pytest.mark.store

TRUNK: dict[str, Any] = {"sip_outbound_address": "trunk.example.com"}


@pytest.fixture
def livekit() -> LiveKitStub:
    return LiveKitStub()


@pytest.fixture
async def gateway(tmp_path: Path, livekit: LiveKitStub) -> AsyncIterator[Running]:
    blocked = {"dial_blocked_prefixes": ("+1900",)}
    async with running_with(livekit, tmp_path, **TRUNK, **blocked) as running:
        yield running


async def beat(gateway: Running, **changes: Any) -> None:
    values = {"worker_id": "w1", "agent_name": gateway.app[SETTINGS].agent_name, "capacity": 10}
    await gateway.store.heartbeat(Heartbeat(**{**values, "active": 0, **changes}))


async def latest(gateway: Running) -> str:
    listed = await Gateway(gateway.http).get("/v1/calls?limit=1")
    return str(listed.body["data"][0]["id"])


async def over(gateway: Running, call_id: str) -> None:
    answer = await Gateway(gateway.http).get(f"/v1/calls/{call_id}?wait=true&timeout=20")
    assert answer.body["endedAt"] is not None


class TestNoAgent:
    @pytest.mark.parametrize(
        ("worker", "code"),
        [
            (None, "no_worker"),
            ({"active": 10}, "workers_full"),
            ({"draining": True}, "workers_draining"),
            ({"agent_name": "another"}, "no_worker"),
        ],
    )
    @pytest.mark.parametrize("way", ["/sip/call", "/v1/calls/web"])
    async def test_no_worker_is_free(
        self, gateway: Running, worker: dict[str, Any] | None, code: str, way: str
    ) -> None:
        if worker is not None:
            await beat(gateway, **worker)
        agent = await make_agent(gateway)
        request = body(agent=agent.id) if way == "/sip/call" else {"agentId": agent.id}
        answer = await Gateway(gateway.http).post(way, json=request)
        assert answer.status == 503
        assert (await diagnosis_of(gateway.http, await latest(gateway)))["code"] == code

    @pytest.mark.parametrize(
        ("full", "code"), [(True, "dispatch_not_taken"), (False, "agent_not_joined")]
    )
    async def test_no_agent_comes(
        self, tmp_path: Path, livekit: LiveKitStub, full: bool, code: str
    ) -> None:
        livekit.workers_full = full
        async with running_with(livekit, tmp_path, agent_join_timeout_s=0.4, **TRUNK) as own:
            await beat(own)
            agent = await make_agent(own)
            placed = await Gateway(own.http).post("/sip/call", json=body(agent=agent.id))
            assert placed.status == 200, placed.body
            call_id = placed.body["call_id"]
            await over(own, call_id)
            found = await diagnosis_of(own.http, call_id)
        assert found["code"] == code
        again = [line for line in found["timeline"] if line["type"] == "agent.redispatched"]
        assert again and again[0] in found["evidence"]

    async def test_no_agent_comes_for_a_caller(self, tmp_path: Path, livekit: LiveKitStub) -> None:
        livekit.workers_full = True
        async with running_with(livekit, tmp_path, agent_join_timeout_s=0.4) as own:
            await own.worker()
            caller = Caller((await number(own)).id)
            livekit.enter(caller.room, caller.participant)
            await deliver(own, caller.webhook("participant_joined"))
            await sent_away(livekit, caller)
            found = await diagnosis_of(own.http, caller.call_id)
        assert found["code"] == "dispatch_not_taken"


class TestDials:
    @pytest.mark.parametrize(
        ("answer", "code"),
        [
            (Refusal("invalid_argument"), "sip_request_invalid"),
            (Refusal("permission_denied"), "trunk_not_allowed"),
            (Refusal("resource_exhausted"), "sip_service_full"),
            (Refusal("resource_exhausted", sip_status_code="486"), "callee_busy"),
            (Refusal("invalid_argument", sip_status_code="488"), "codec_refused"),
            (Refusal("internal"), None),
        ],
    )
    async def test_that_the_sip_service_refuses(
        self, gateway: Running, livekit: LiveKitStub, answer: Refusal, code: str | None
    ) -> None:
        livekit.answer = answer
        await Gateway(gateway.http).post("/sip/call", json=body())
        call_id = await latest(gateway)
        await over(gateway, call_id)
        found = await diagnosis_of(gateway.http, call_id)
        assert found["code"] == code
        assert found["verdict"] == ("fault" if code else "unknown")


async def test_livekit_is_away(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, **TRUNK)) as own:
        await own.worker()
        agent = await make_agent(own)
        number = await make_number(own, agent=agent)
        request = {"agentId": agent.id, "channel": "voice", "toNumber": "+15551230077"}
        accepted = await Gateway(own.http).post(
            "/api/v1/sessions", json={**request, "fromNumber": number.phone_number}
        )
        assert accepted.status == 202, accepted.body
        call_id = accepted.body["data"]["id"]
        await over(own, call_id)
        assert (await diagnosis_of(own.http, call_id))["code"] == "livekit_away"


class TestTurnedAway:
    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"agent_id": None}, "number_without_agent"),
            ({"agent_id": "agt_none"}, "agent_not_found"),
            ({"direction": "outbound"}, "number_outbound_only"),
            ({"status": "pending"}, "number_not_attached"),
        ],
    )
    async def test_a_caller(
        self, gateway: Running, livekit: LiveKitStub, changes: dict[str, Any], code: str
    ) -> None:
        caller = Caller((await number(gateway, **changes)).id)
        livekit.enter(caller.room, caller.participant)
        await caller.asked_by_worker(gateway)
        # A number whose tenant is not told is shown to the operator.
        assert (await diagnosis_of(gateway.http, caller.call_id, operator()))["code"] == code

    async def test_at_the_limit(self, tmp_path: Path, livekit: LiveKitStub) -> None:
        async with running_with(livekit, tmp_path, max_concurrent_calls=1) as own:
            await own.call()
            caller = Caller((await number(own)).id)
            livekit.enter(caller.room, caller.participant)
            await deliver(own, caller.webhook("participant_joined"))
            found = await diagnosis_of(own.http, caller.call_id)
        assert found["code"] == "concurrency_limit"

    async def test_a_caller_who_hangs_up_while_it_rings(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        caller = Caller((await number(gateway)).id)
        livekit.enter(caller.room, caller.participant)
        await deliver(gateway, caller.webhook("participant_joined"))
        await deliver(gateway, caller.left("hangup"))
        found = await diagnosis_of(gateway.http, caller.call_id)
        assert found["code"] == "caller_gave_up"
        assert found["timeline"][-1]["what"].startswith("CANCEL received")

    async def test_a_caller_for_whom_it_rings_out(
        self, gateway: Running, livekit: LiveKitStub
    ) -> None:
        caller = Caller((await number(gateway)).id)
        livekit.enter(caller.room, caller.participant)
        await deliver(gateway, caller.webhook("participant_joined"))
        await deliver(gateway, caller.left("ringing"))
        found = await diagnosis_of(gateway.http, caller.call_id)
        assert found["code"] == "agent_did_not_answer" and found["unknown"]


class TestLeftBehind:
    """The gateway or the worker died, and the reconciler finishes the record."""

    async def test_a_gateway_that_died_while_it_rang(self, gateway: Running) -> None:
        dialing = CallEvent(type="call.dialing", data={"participantId": "PA", "sipCallId": "SCL"})
        call = await old_call(gateway, dialing)
        await round_of(gateway)
        found = await diagnosis_of(gateway.http, call.id)
        assert found["code"] == "gateway_restarted" and found["unknown"]

    async def test_a_gateway_that_died_before_the_dial(self, gateway: Running) -> None:
        call = await old_call(gateway)
        await round_of(gateway)
        assert (await diagnosis_of(gateway.http, call.id))["code"] == "gateway_restarted"

    async def test_a_worker_that_died(self, gateway: Running, livekit: LiveKitStub) -> None:
        call = await old_call(gateway, CallEvent(type="call.answered"))
        livekit.enter(call.room_name, phone(call.participant_identity))
        await round_of(gateway)
        await round_of(gateway, alone_s=0)
        found = await diagnosis_of(gateway.http, call.id)
        assert found["code"] == "worker_lost" and found["unknown"]

    async def test_an_end_that_nobody_reported(self, gateway: Running) -> None:
        call = await old_call(gateway, CallEvent(type="call.answered"))
        await round_of(gateway)
        assert (await diagnosis_of(gateway.http, call.id))["code"] == "end_not_seen"


class TestTransfers:
    @pytest.mark.parametrize(
        ("answer", "code"),
        [
            (Refusal("resource_exhausted", sip_status_code="486"), "transfer_busy"),
            (Refusal("permission_denied", sip_status_code="603"), "transfer_rejected"),
            (Refusal("not_found", sip_status_code="404"), "transfer_invalid_destination"),
            (Refusal("deadline_exceeded"), "transfer_no_answer"),
            (Refusal("internal"), "transfer_failed"),
        ],
    )
    async def test_of_a_human_who_does_not_come(
        self, gateway: Running, livekit: LiveKitStub, answer: Refusal, code: str
    ) -> None:
        livekit.answer = answer
        call = await talking(gateway, transfer_mode="warm")
        await ask(gateway, call.id)
        assert (await diagnosis_of(gateway.http, call.id))["code"] == code

    async def test_to_a_forbidden_destination(self, gateway: Running) -> None:
        call = await talking(gateway, transfer_mode="warm", transfer_number="+19005550100")
        await ask(gateway, call.id)
        assert (await diagnosis_of(gateway.http, call.id))["code"] == "transfer_not_allowed"


class TestWhoMayAsk:
    async def show(self, gateway: Running, call: Call, headers: dict[str, str]) -> tuple[int, Any]:
        path = f"/v1/calls/{call.id}"
        async with gateway.http.get(f"{path}/diagnosis", headers=headers) as answer:
            return answer.status, await answer.json()

    async def test_another_tenants_call_is_like_none(self, gateway: Running) -> None:
        call = await gateway.call()
        none = await Gateway(gateway.http).get("/v1/calls/call_none/diagnosis")
        assert none.status == 404
        assert await self.show(gateway, call, RIVAL) == (404, none.body)
        assert (await self.show(gateway, call, ACME))[0] == 200
        assert (await self.show(gateway, call, operator()))[0] == 200
        assert (await self.show(gateway, call, {}))[0] == 401

    async def test_a_call_in_progress(self, gateway: Running) -> None:
        call = await talking(gateway)
        found = await diagnosis_of(gateway.http, call.id)
        assert (found["verdict"], found["cause"], found["status"]) == (
            "running",
            None,
            "in-progress",
        )
        assert [line["type"] for line in found["timeline"]] == ["call.answered", "call.queued"]

    async def test_it_holds_no_numbers(self, gateway: Running) -> None:
        call = await talking(gateway, transfer_mode="warm")
        await ask(gateway, call.id)
        shown = str(await diagnosis_of(gateway.http, call.id))
        for hidden in (call.from_number, call.to_number, "+15551230077"):
            assert hidden is not None and hidden not in shown
