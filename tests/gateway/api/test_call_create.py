"""POST /v1/calls up to the dial: the caller ID, the agent, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.events import ended
from core.models import CallEvent
from gateway.calls.plan import CallPlan
from gateway.keys import STREAMS, TIMELINE
from tests.conftest import ACME, GLOBAL_PASSWORD, GLOBAL_USER, RIVAL, operator
from tests.support.inprocess import Running, running, settings_in
from tests.support.numbers import dial_nothing, make_agent, make_number

pytestmark = pytest.mark.store

TO = "+14155550199"


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[CallPlan]:
    return dial_nothing(monkeypatch)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    settings = settings_in(
        tmp_path,
        sip_outbound_address="trunk.example.com",
        sip_outbound_auth_username=GLOBAL_USER,
        sip_outbound_auth_password=GLOBAL_PASSWORD,
    )
    async with running(settings) as started:
        yield started


async def post(
    gateway: Running, body: Any, headers: dict[str, str] = ACME, path: str = "/v1/calls"
) -> tuple[int, Any]:
    async with gateway.http.post(path, json=body, headers=headers) as response:
        return response.status, await response.json()


def fields(body: Any) -> list[str]:
    return [detail["field"] for detail in body["error"]["details"]]


class TestCallerId:
    async def test_the_first_bound_number_calls(
        self, gateway: Running, plans: list[CallPlan]
    ) -> None:
        agent = await make_agent(gateway)
        first = await make_number(gateway, agent=agent)
        await make_number(gateway, agent=agent)
        status, call = await post(
            gateway, {"agentId": agent.id, "toNumber": TO, "metadata": {"lead": 1}}
        )
        assert status == 200
        assert (call["fromNumber"], call["toNumber"]) == (first.phone_number, TO)
        assert (call["phoneNumberId"], call["phoneNumber"]) == (first.id, first.phone_number)
        assert (call["agentId"], call["agentVersion"], call["agentName"]) == (
            agent.id,
            1,
            "Greeter",
        )
        assert (call["status"], call["direction"], call["type"]) == ("queued", "outbound", "pstn")
        assert call["roomName"] == call["id"]
        assert call["startedAt"] == call["createdAt"]
        assert (call["recordingAvailable"], call["recordingUrl"]) == (False, None)
        assert (call["transcripts"], call["metadata"]) == ([], {"lead": 1})
        (plan,) = plans
        assert (plan.trunk.address, plan.trunk.username) == ("trunk.example.com", GLOBAL_USER)

    async def test_a_number_that_only_takes_calls_is_passed_over(
        self, gateway: Running, plans: list[CallPlan]
    ) -> None:
        agent = await make_agent(gateway)
        inbound = await make_number(gateway, agent=agent, direction="inbound")
        body = {"agentId": agent.id, "toNumber": TO}
        status, answer = await post(gateway, body)
        assert (status, answer["error"]["code"]) == (403, "FROM_NUMBER_NOT_ALLOWED")
        second = await make_number(gateway, agent=agent)
        assert (await post(gateway, body))[1]["phoneNumberId"] == second.id
        status, answer = await post(gateway, {**body, "fromNumberId": inbound.id})
        assert (status, answer["error"]["code"]) == (403, "FROM_NUMBER_NOT_ALLOWED")
        assert len(plans) == 1

    async def test_any_of_its_numbers_may_be_named(
        self, gateway: Running, plans: list[CallPlan]
    ) -> None:
        agent = await make_agent(gateway)
        await make_number(gateway, agent=agent)
        second = await make_number(gateway, agent=agent)
        body = {"agentId": agent.id, "toNumber": TO, "fromNumberId": second.id}
        assert (await post(gateway, body))[1]["fromNumber"] == second.phone_number

    async def test_no_other_number_may(self, gateway: Running, plans: list[CallPlan]) -> None:
        agent, other = await make_agent(gateway), await make_agent(gateway)
        foreign = await make_agent(gateway, "rival")
        await make_number(gateway, agent=agent)
        answers = []
        for number in (
            (await make_number(gateway, agent=other)).id,
            (await make_number(gateway)).id,
            (await make_number(gateway, "rival", foreign)).id,
            "num_none",
        ):
            body = {"agentId": agent.id, "toNumber": TO, "fromNumberId": number}
            status, answer = await post(gateway, body)
            assert (status, fields(answer)) == (422, ["fromNumberId"])
            answers.append(answer)
        assert answers.count(answers[0]) == len(answers)
        assert plans == []

    async def test_without_a_number_nobody_calls(self, gateway: Running) -> None:
        agent = await make_agent(gateway)
        await make_number(gateway)
        for agent_id in (agent.id, "greeter"):
            status, answer = await post(gateway, {"agentId": agent_id, "toNumber": TO})
            assert (status, answer["error"]["code"]) == (409, "NO_NUMBER")

    async def test_an_operators_call_is_the_owners(
        self, gateway: Running, plans: list[CallPlan]
    ) -> None:
        agent = await make_agent(gateway)
        await make_number(gateway, agent=agent)
        status, call = await post(gateway, {"agentId": agent.id, "toNumber": TO}, operator())
        assert status == 200
        assert plans[0].principal.auth_id == "acme"
        async with gateway.http.get(f"/v1/calls/{call['id']}", headers=ACME) as response:
            assert response.status == 200


class TestAgent:
    async def test_another_tenants_agent_does_not_exist(self, gateway: Running) -> None:
        foreign = await make_agent(gateway, "rival")
        await make_number(gateway, "rival", foreign)
        answers = [
            await post(gateway, {"agentId": agent_id, "toNumber": TO})
            for agent_id in (foreign.id, "agt_none")
        ]
        assert answers[0] == answers[1]
        assert (answers[0][0], answers[0][1]["error"]["code"]) == (404, "AGENT_NOT_FOUND")

    async def test_what_cannot_hold_a_call(self, gateway: Running) -> None:
        for config, code in (
            ({"enabled": False}, "AGENT_DISABLED"),
            ({"voice_mode": "webhook"}, "WEBHOOK_NOT_CONFIGURED"),
        ):
            agent = await make_agent(gateway, **config)
            await make_number(gateway, agent=agent)
            status, answer = await post(gateway, {"agentId": agent.id, "toNumber": TO})
            assert (status, answer["error"]["code"]) == (409, code)

    async def test_a_call_of_its_own_kind(self, gateway: Running, plans: list[CallPlan]) -> None:
        agent = await make_agent(
            gateway, voice_mode="webhook", model="openai/gpt-5", begin_message="Hi {{name}}."
        )
        await make_number(gateway, agent=agent)
        body = {
            "agentId": agent.id,
            "toNumber": TO,
            "systemPrompt": "Sell {{what}} to {{ name }}, {{unknown}}.",
            "variables": {"name": "Ann", "what": "tea"},
            "voice": "nova",
            "modelTier": "max",
        }
        assert (await post(gateway, body))[0] == 200
        pinned = plans[0].agent
        assert pinned is not None
        config = pinned.config
        assert (config.voice_mode, config.voice) == ("hosted", "nova")
        assert (config.model_tier, config.model) == ("max", None)
        assert config.system_prompt == "Sell tea to Ann, {{unknown}}."
        assert config.begin_message == "Hi Ann."
        assert pinned.version == 1
        body = {"agentId": agent.id, "toNumber": TO, "systemPrompt": "x", "initialGreeting": ""}
        await post(gateway, body)
        silent = plans[1].agent
        assert silent is not None
        assert silent.config.begin_message is None
        # The agent itself is unchanged.
        status, _ = await post(gateway, {"agentId": agent.id, "toNumber": TO})
        assert status == 409


class TestBody:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("agentId", None),
            ("agentId", ""),
            ("agentId", 7),
            ("agentId", "x" * 65),
            ("toNumber", None),
            ("toNumber", ""),
            ("toNumber", "4155550199"),
            ("toNumber", "+04155550199"),
            ("toNumber", "+1415555019912345"),
            ("toNumber", "+1 415 555 0199"),
            ("toNumber", "+1415555０199"),
            ("toNumber", "+14155550199\n"),
            ("toNumber", ["+14155550199"]),
            ("fromNumberId", ""),
            ("initialGreeting", "x" * 2001),
            ("systemPrompt", ""),
            ("systemPrompt", "x" * 50_001),
            ("variables", {"n": 1}),
            ("variables", {str(n): "x" for n in range(101)}),
            ("variables", ["x"]),
            ("modelTier", "fast"),
            ("sip", {"outboundAddress": "sip:x"}),
            ("sip", {"outboundAddress": ""}),
            ("sip", {"colour": "red"}),
            ("sip", "host"),
            ("metadata", {"x": "y" * 16_385}),
            ("metadata", []),
            ("waitForCompletion", "yes"),
            ("maxWaitSeconds", -1),
            ("maxWaitSeconds", 601),
            ("maxWaitSeconds", "ten"),
            ("colour", "red"),
        ],
    )
    async def test_a_bad_field_is_named(
        self, gateway: Running, plans: list[CallPlan], field: str, value: Any
    ) -> None:
        agent = await make_agent(gateway)
        await make_number(gateway, agent=agent)
        status, answer = await post(gateway, {"agentId": agent.id, "toNumber": TO, field: value})
        assert (status, answer["error"]["code"]) == (422, "VALIDATION_ERROR")
        assert fields(answer)[0].split(".")[0] == field
        assert plans == []

    async def test_words_that_get_too_long(self, gateway: Running, plans: list[CallPlan]) -> None:
        agent = await make_agent(gateway, begin_message="{{x}}" * 400)
        await make_number(gateway, agent=agent)
        body = {"agentId": agent.id, "toNumber": TO, "variables": {"x": "y" * 5000}}
        status, answer = await post(gateway, body)
        assert (status, fields(answer)) == (422, ["variables"])

    async def test_what_is_not_served_yet_is_named(
        self, gateway: Running, plans: list[CallPlan]
    ) -> None:
        agent = await make_agent(gateway)
        await make_number(gateway, agent=agent)
        body = {"agentId": agent.id, "toNumber": TO, "record": False, "disableRecording": True}
        body["callScreeningIdentity"] = "us"
        async with gateway.http.post("/v1/calls", json=body, headers=ACME) as response:
            assert response.status == 200
            assert response.headers["X-Ignored-Fields"] == "callScreeningIdentity"

    async def test_a_host_of_the_callers_gets_none_of_our_credentials(
        self, gateway: Running, plans: list[CallPlan]
    ) -> None:
        agent = await make_agent(gateway)
        await make_number(gateway, agent=agent)
        body: dict[str, Any] = {"agentId": agent.id, "toNumber": TO}
        await post(gateway, {**body, "sip": {"outboundAddress": "other.example.com:5070"}})
        await post(gateway, {**body, "sip": {"authUsername": "me", "authPassword": "mine"}})
        await post(gateway, {**body, "sip": None})
        trunks = [(p.trunk.address, p.trunk.username, p.trunk.password) for p in plans]
        assert trunks == [
            ("other.example.com:5070", None, None),
            ("trunk.example.com", "me", "mine"),
            ("trunk.example.com", GLOBAL_USER, GLOBAL_PASSWORD),
        ]

    async def test_a_token_comes_first(self, gateway: Running) -> None:
        async with gateway.http.post("/v1/calls", data=b"{") as response:
            assert response.status == 401


class TestOnce:
    async def test_ten_twins_make_one_call(self, gateway: Running, plans: list[CallPlan]) -> None:
        agent = await make_agent(gateway)
        await make_number(gateway, agent=agent)
        body = {"agentId": agent.id, "toNumber": TO}
        headers = {**ACME, "Idempotency-Key": "lead-882"}
        answers = await asyncio.gather(*(post(gateway, body, headers) for _ in range(10)))
        assert {status for status, _ in answers} == {200}
        assert len({answer["id"] for _, answer in answers}) == 1
        assert len(plans) == 1
        other = await post(gateway, {**body, "toNumber": "+14155550198"}, headers)
        assert (other[0], other[1]["error"]["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")


class TestWaiting:
    async def test_the_answer_comes_when_the_call_is_over(
        self, gateway: Running, plans: list[CallPlan]
    ) -> None:
        agent = await make_agent(gateway)
        await make_number(gateway, agent=agent)
        body = {"agentId": agent.id, "toNumber": TO, "waitForCompletion": True}
        waiting = asyncio.create_task(post(gateway, body))
        timeline = gateway.app[TIMELINE]
        async with asyncio.timeout(10):
            while not plans or not timeline.listeners(plans[0].call_id):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not waiting.done()
        over = CallEvent(type="call.ended", data=ended("busy", "dial_busy", sip_status_code=486))
        await timeline.append(plans[0].call_id, [over], "gateway")
        status, call = await waiting
        assert (status, call["status"], call["sipStatusCode"]) == (200, "busy", 486)

    async def test_the_time_is_up(self, gateway: Running, plans: list[CallPlan]) -> None:
        agent = await make_agent(gateway)
        await make_number(gateway, agent=agent)
        body = {"agentId": agent.id, "toNumber": TO, "waitForCompletion": True, "maxWaitSeconds": 0}
        status, call = await post(gateway, body)
        assert (status, call["status"]) == (200, "queued")

    @pytest.mark.attack
    async def test_it_counts_as_a_stream(self, tmp_path: Path, plans: list[CallPlan]) -> None:
        """A request that may not wait calls nobody, and its key is free again."""
        settings = settings_in(tmp_path, sip_outbound_address="trunk.example.com", max_streams=1)
        async with running(settings) as gateway:
            agent = await make_agent(gateway)
            await make_number(gateway, agent=agent)
            at_once = {"agentId": agent.id, "toNumber": TO}
            body = {**at_once, "waitForCompletion": True, "maxWaitSeconds": 0}
            key = {**ACME, "Idempotency-Key": "once"}
            with gateway.app[STREAMS].one("acme"):
                status, answer = await post(gateway, body, key)
                assert (status, answer["error"]["code"]) == (429, "STREAM_LIMIT")
                assert plans == []
                assert (await post(gateway, at_once))[0] == 200
            assert (await post(gateway, body, key))[0] == 200
            assert len(plans) == 2
            assert not gateway.app[STREAMS]._held


async def test_a_call_that_livekit_does_not_take(gateway: Running) -> None:
    agent = await make_agent(gateway)
    await make_number(gateway, agent=agent)
    status, answer = await post(gateway, {"agentId": agent.id, "toNumber": TO})
    assert (status, answer["error"]["code"]) == (500, "CALL_FAILED")


async def test_a_rivals_call_is_not_seen(gateway: Running, plans: list[CallPlan]) -> None:
    agent = await make_agent(gateway)
    await make_number(gateway, agent=agent)
    _, call = await post(gateway, {"agentId": agent.id, "toNumber": TO})
    async with gateway.http.get(f"/v1/calls/{call['id']}", headers=RIVAL) as response:
        assert response.status == 404
