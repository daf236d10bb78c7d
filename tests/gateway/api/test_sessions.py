"""/api/v1/sessions: a call is accepted at once, and its record shows the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.models import CallEvent, Turn
from tests.conftest import ACME, RIVAL, operator
from tests.gateway.api.test_call_create import TO, post
from tests.gateway.api.test_calls import fetch
from tests.support.inprocess import Running, running, settings_in
from tests.support.numbers import make_agent, make_number

pytestmark = pytest.mark.store

DISPATCH = "/api/v1/sessions/dispatch"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    settings = settings_in(tmp_path, sip_outbound_address="trunk.example.com")
    async with running(settings) as started:
        await started.worker()
        yield started


async def request(gateway: Running, tenant: str | None = "acme") -> dict[str, Any]:
    agent = await make_agent(gateway, tenant)
    number = await make_number(gateway, tenant, agent)
    return {
        "agentId": agent.id,
        "channel": "voice",
        "fromNumber": number.phone_number,
        "toNumber": TO,
        "metadata": {"leadId": "lead_882"},
    }


def code(answer: tuple[int, Any]) -> tuple[int, str]:
    status, body = answer
    assert (body["success"], body["data"]) == (False, None)
    return status, body["meta"]["code"]


@pytest.mark.parametrize("path", [DISPATCH, "/api/v1/sessions"])
async def test_accepted_and_then_on_its_record(gateway: Running, path: str) -> None:
    body = await request(gateway)
    status, answer = await post(gateway, body, path=path)
    assert status == 202
    assert answer["success"] is True
    assert set(answer) == {"success", "data", "message", "meta"}
    call_id = answer["data"]["id"]
    assert answer["data"] == {"id": call_id, "status": "queued"}
    # There is no LiveKit here: the dial fails, which only the record shows.
    _, call = await fetch(gateway, f"/v1/calls/{call_id}", ACME, wait="true")
    assert (call["status"], call["disconnectionReason"]) == ("failed", "dial_failed")
    assert (call["fromNumber"], call["toNumber"]) == (body["fromNumber"], TO)
    assert (call["agentId"], call["metadata"]) == (body["agentId"], body["metadata"])
    assert call["phoneNumberId"].startswith("num_")
    _, session = await fetch(gateway, f"/api/v1/sessions/{call_id}")
    assert session["data"] == call


async def test_one_key_one_call(gateway: Running) -> None:
    body = await request(gateway)
    headers = {**ACME, "Idempotency-Key": "lead-882"}
    answers = await asyncio.gather(*(post(gateway, body, headers, DISPATCH) for _ in range(10)))
    assert {status for status, _ in answers} == {202}
    assert len({answer["data"]["id"] for _, answer in answers}) == 1
    assert (await fetch(gateway, "/v1/calls"))[1]["total"] == 1
    again = await post(gateway, {**body, "metadata": {}}, headers, DISPATCH)
    assert code(again) == (409, "IDEMPOTENCY_KEY_REUSED")


async def test_a_number_that_is_not_ours_to_call_from(gateway: Running) -> None:
    body = await request(gateway)
    theirs = await make_number(gateway, "rival")
    taken, attaching = (
        await make_number(gateway, direction="inbound"),
        await make_number(gateway, status="attaching"),
    )
    answers = [
        await post(gateway, {**body, "fromNumber": number}, path=DISPATCH)
        for number in (
            theirs.phone_number,
            "+12025550000",
            taken.phone_number,
            attaching.phone_number,
        )
    ]
    assert code(answers[0]) == (403, "FROM_NUMBER_NOT_ALLOWED")
    assert answers.count(answers[0]) == len(answers)
    outbound = await make_number(gateway, direction="outbound")
    allowed = await post(gateway, {**body, "fromNumber": outbound.phone_number}, path=DISPATCH)
    assert allowed[0] == 202


async def test_an_agent_that_is_not_ours(gateway: Running) -> None:
    body = await request(gateway)
    theirs = await make_agent(gateway, "rival")
    answers = [
        await post(gateway, {**body, "agentId": agent_id}, path=DISPATCH)
        for agent_id in (theirs.id, "agt_none")
    ]
    assert code(answers[0]) == (404, "AGENT_NOT_FOUND")
    assert answers[0] == answers[1]
    # An operator may not mix tenants either: the call belongs to the number's owner.
    mixed = await post(gateway, {**body, "agentId": theirs.id}, operator(), DISPATCH)
    assert code(mixed) == (404, "AGENT_NOT_FOUND")


async def test_policy_and_state(gateway: Running) -> None:
    body = await request(gateway)
    refused = await post(gateway, {**body, "toNumber": "+19002345678"}, path=DISPATCH)
    assert code(refused) == (403, "DESTINATION_NOT_ALLOWED")
    webhook = await make_agent(gateway, voice_mode="webhook")
    refused = await post(gateway, {**body, "agentId": webhook.id}, path=DISPATCH)
    assert code(refused) == (409, "WEBHOOK_NOT_CONFIGURED")
    assert (await fetch(gateway, "/v1/calls"))[1]["total"] == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agentId", ""),
        ("channel", "sms"),
        ("channel", None),
        ("fromNumber", "15105550123"),
        ("fromNumber", None),
        ("toNumber", "tel:+14155550199"),
        ("toNumber", 14155550199),
        ("metadata", "lead"),
        ("metadata", {"x": "y" * 17_000}),
        ("colour", "red"),
    ],
)
async def test_a_bad_field_is_named(gateway: Running, field: str, value: Any) -> None:
    answer = await post(gateway, {**await request(gateway), field: value}, path=DISPATCH)
    assert code(answer) == (422, "VALIDATION_ERROR")
    assert answer[1]["meta"]["details"][0]["field"] == field


async def test_a_recording_is_not_served_yet(gateway: Running) -> None:
    body = {**await request(gateway), "recording": {"enabled": False}}
    async with gateway.http.post(DISPATCH, json=body, headers=ACME) as response:
        assert response.status == 202
        assert "X-Ignored-Fields" not in response.headers


async def test_so_many_at_a_time(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, sip_outbound_address="h", max_concurrent_calls=1)
    async with running(settings) as gateway:
        body = await request(gateway)
        await gateway.call()
        answer = await post(gateway, body, path=DISPATCH)
        assert code(answer) == (429, "CONCURRENCY_LIMIT")


async def test_dispatch_is_no_session(gateway: Running) -> None:
    async with gateway.http.get(DISPATCH, headers=ACME) as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_the_transcript(gateway: Running) -> None:
    call = await gateway.call()
    turn = Turn(id="t1", transcript="Hello", response="Hi")
    await gateway.store.append(call.id, [CallEvent(type="turn", data=turn.wire())], "worker")
    status, answer = await fetch(gateway, f"/api/v1/sessions/{call.id}/transcript")
    assert (status, answer["data"]["callId"]) == (200, call.id)
    assert [turn["response"] for turn in answer["data"]["transcripts"]] == ["Hi"]
    path = f"/api/v1/sessions/{call.id}/transcript?format=txt"
    async with gateway.http.get(path, headers=ACME) as response:
        assert await response.text() == "--:-- Caller: Hello\n--:-- Agent: Hi\n"


@pytest.mark.parametrize("suffix", ["", "/transcript"])
async def test_another_tenants_session_does_not_exist(gateway: Running, suffix: str) -> None:
    call = await gateway.call()
    theirs = await fetch(gateway, f"/api/v1/sessions/{call.id}{suffix}", RIVAL)
    nobodys = await fetch(gateway, f"/api/v1/sessions/call_none{suffix}", RIVAL)
    assert theirs == nobodys
    assert code(theirs) == (404, "CALL_NOT_FOUND")
