"""Calls from an agent's own number to a real phone: placed, followed, awaited, hung up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from core.models import PhoneNumber, new_id, now
from dev.phone import Answer, Phone, Reject, RingOut
from dev.scenario import GOODBYE, GOODBYE_ANSWER, OPENING, OPENING_ANSWER
from dev.stack import Stack
from gateway.store.database import Database, Scope
from gateway.store.numbers import NumberStore
from tests.conftest import ACME, GREETING, Gateway
from tests.gateway.api.test_waiting import frames
from tests.support.calls import told

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

TO = "+15551234567"


@dataclass(frozen=True)
class Line:
    """An agent with a number, ready to call."""

    gateway: Gateway
    agent_id: str
    number: PhoneNumber

    async def call(self, phone: Phone, **changes: Any) -> dict[str, Any]:
        body = {
            "agentId": self.agent_id,
            "toNumber": TO,
            "sip": {"outboundAddress": phone.address},
            **changes,
        }
        answer = await self.gateway.post("/v1/calls", json=body)
        assert answer.status == 200, answer.body
        return dict(answer.body)

    async def over(self, call_id: str) -> dict[str, Any]:
        """Return the record, once the call is over."""
        answer = await self.gateway.get(f"/v1/calls/{call_id}?wait=true&timeout=40")
        assert answer.body["endedAt"], answer.body
        return dict(answer.body)

    async def end(self, call_id: str) -> tuple[int, Any]:
        # Of the public clients, one sends {} and the other no body.
        answer = await self.gateway.post(f"/v1/calls/{call_id}/end", json={})
        return answer.status, answer.body


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def line(stack: Stack, gateway: Gateway) -> AsyncIterator[Line]:
    made = await gateway.post(
        "/v1/agents",
        json={
            "name": "Caller",
            "voiceMode": "hosted",
            "systemPrompt": "Talk.",
            "beginMessage": GREETING,
        },
    )
    agent_id = made.body["id"]
    number = PhoneNumber(
        id=new_id("num"),
        auth_id="acme",
        phone_number="+15105550177",
        country="US",
        provider="sip",
        direction="outbound",
        status="active",
        created_at=now(),
    )
    database = await Database.open(stack.settings.database_url)
    numbers = NumberStore(database)
    await numbers.insert(number)
    assert await numbers.bind(Scope("acme"), number.id, agent_id)
    yield Line(gateway, agent_id, number)
    await numbers.delete(number.id)
    await database.close()


async def transcript(gateway: Gateway, call_id: str) -> list[tuple[str, Any]]:
    path = f"/v1/calls/{call_id}/transcript/stream"
    async with asyncio.timeout(60), gateway.session.get(path, headers=ACME) as response:
        return frames(await response.text())


async def test_a_conversation_followed_live_and_awaited(line: Line, phone: Phone) -> None:
    placed = await line.call(phone, metadata={"lead": 882})
    assert placed["fromNumber"] == line.number.phone_number
    async with asyncio.TaskGroup() as group:
        follower = group.create_task(transcript(line.gateway, placed["id"]))
        awaited = group.create_task(line.over(placed["id"]))
        call = await phone.next_call(10)
        await call.answered(10)
        await call.listen(20)
        await call.say(OPENING)
        await call.listen(20)
        await call.say(GOODBYE)
        await call.ended(20)
    record = awaited.result()
    assert (record["status"], record["disconnectionReason"]) == ("completed", "agent_hangup")
    assert record["phoneNumberId"] == line.number.id
    said = [(turn["transcript"], turn["response"]) for turn in record["transcripts"]]
    assert [response for _, response in said] == [GREETING, OPENING_ANSWER, GOODBYE_ANSWER]
    assert record["lastTranscriptSnippet"] == GOODBYE_ANSWER
    assert record["latency"]["total"] > 0
    events = follower.result()
    assert [events[0][0], events[-1]] == ["connected", ("ended", {"status": "completed"})]
    turns = {data["id"]: data["response"] for name, data in events if name == "turn"}
    assert list(turns.values()) == [GREETING, OPENING_ANSWER, GOODBYE_ANSWER]


async def test_the_words_of_one_call(line: Line, phone: Phone) -> None:
    placed = await line.call(
        phone,
        initialGreeting="Your table for {{people}} is ready.",
        variables={"people": "seven"},
    )
    call = await phone.next_call(10)
    await call.answered(10)
    await call.listen(20)
    await call.hangup()
    record = await line.over(placed["id"])
    assert record["disconnectionReason"] == "user_hangup"
    assert record["transcripts"][0]["response"] == "Your table for seven is ready."


async def test_the_answer_waits_for_the_end(line: Line, phone: Phone) -> None:
    phone.behave(Reject(486))
    record = await line.call(phone, waitForCompletion=True, maxWaitSeconds=30)
    assert (record["status"], record["disconnectionReason"]) == ("busy", "dial_busy")
    assert record["sipStatusCode"] == 486


async def test_called_off_while_it_rings(line: Line, phone: Phone) -> None:
    phone.behave(RingOut())
    placed = await line.call(phone)
    call = await phone.next_call(10)
    await told(line.gateway, placed["id"], "call.ringing")
    status, body = await line.end(placed["id"])
    assert (status, body["status"], body["disconnectionReason"]) == (200, "canceled", "canceled")
    await call.ended(10)
    assert not call.was_up
    assert (await line.end(placed["id"]))[0] == 409
    assert (await line.over(placed["id"]))["status"] == "canceled"


async def test_hung_up_while_they_talk(line: Line, phone: Phone) -> None:
    phone.behave(Answer())
    placed = await line.call(phone)
    call = await phone.next_call(10)
    await call.answered(10)
    await told(line.gateway, placed["id"], "call.answered")
    answers = await asyncio.gather(*(line.end(placed["id"]) for _ in range(3)))
    assert {status for status, _ in answers} <= {200, 409}
    await call.ended(10)
    record = await line.over(placed["id"])
    assert (record["status"], record["disconnectionReason"]) == ("completed", "agent_hangup")


async def dispatched(line: Line) -> str:
    answer = await line.gateway.post(
        "/api/v1/sessions/dispatch",
        json={
            "agentId": line.agent_id,
            "channel": "voice",
            "fromNumber": line.number.phone_number,
            "toNumber": "+15551230042",
        },
    )
    assert (answer.status, answer.body["data"]["status"]) == (202, "queued")
    return str(answer.body["data"]["id"])


async def test_a_session_is_accepted_before_anything_rings(line: Line, exchange: Phone) -> None:
    exchange.behave(RingOut())
    call_id = await dispatched(line)
    call = await exchange.next_call(10)
    await told(line.gateway, call_id, "call.ringing")
    await call.answer()
    await call.answered(10)
    await call.listen(20)
    await call.hangup()
    record = await line.over(call_id)
    assert (record["status"], record["disconnectionReason"]) == ("completed", "user_hangup")
    assert record["phoneNumberId"] == line.number.id
    session = await line.gateway.get(f"/api/v1/sessions/{call_id}")
    assert session.body["data"] == record


async def test_a_session_called_off_at_once(line: Line, exchange: Phone) -> None:
    exchange.behave(RingOut())
    call_id = await dispatched(line)
    status, body = await line.end(call_id)
    assert (status, body["status"]) == (200, "canceled")
    assert (await line.over(call_id))["status"] == "canceled"
    for call in exchange.calls:
        if call.called == "+15551230042":
            await call.ended(10)
