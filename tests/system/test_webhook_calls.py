"""Calls over SIP whose turns a webhook answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from dev.phone import Phone
from dev.scenario import (
    ENOUGH,
    ENOUGH_ANSWER,
    GOODBYE,
    OPENING,
    OPENING_ANSWER,
    SPECIALS,
    SPECIALS_ANSWER,
    TABLE,
)
from dev.speech import Recognizer, normalize
from dev.stack import Stack
from dev.stack.options import HOST, ROOT
from dev.stack.ports import PORTS
from tests.conftest import Gateway
from tests.support.calls import Placed, request, told
from tests.support.inbound_rig import Line, make_agent, outcome
from tests.support.receiver import served

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

EXAMPLE = ROOT / "examples/webhook/server.py"
LOOK, FREE = "Let me look into the book.", "Yes, a table for four is free at seven."
BYE = "Goodbye, and thank you for calling."


async def hook(gateway: Gateway, agent_id: str, url: str) -> str:
    """Set the agent's webhook and return its secret."""
    answer = await gateway.post(f"/v1/agents/{agent_id}/webhook", json={"url": url})
    assert answer.status == 200, answer.body
    return str(answer.body["secret"])


async def timeline(gateway: Gateway, call_id: str) -> list[dict[str, Any]]:
    """Return the events of a call that is over."""
    path = f"/v1/calls/{call_id}/events"
    async with gateway.session.get(path, headers=gateway.headers) as events:
        lines = (await events.text()).splitlines()
    data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    return [event for event in data if "type" in event]


@contextlib.asynccontextmanager
async def example(port: int, secret: str) -> AsyncIterator[None]:
    """Run the example as its readers start it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLE),
        env={
            **os.environ,
            "WEBHOOK_SECRET": secret,
            "PORT": str(port),
            "PYTHONUNBUFFERED": "1",
        },
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while b"Running on" not in await process.stdout.readline():
                assert process.returncode is None
        yield
    finally:
        process.terminate()
        # This also reads the rest of its output: a full pipe would block its exit.
        await process.communicate()


async def test_the_example_holds_a_call(stack: Stack, gateway: Gateway, phone: Phone) -> None:
    agent = await make_agent(gateway, voiceMode="webhook", beginMessage=None)
    port = PORTS.take(HOST)
    try:
        secret = await hook(gateway, agent, f"http://{HOST}:{port}/")
        async with example(port, secret):
            placed = await Placed.place(gateway, request(phone.address, agent=agent))
            call = await phone.next_call(10)
            await call.answered(20)
            await told(gateway, placed.call_id, "agent.ready")
            asked = await call.say(TABLE)
            look = await call.listen(20)
            free = await call.listen(20)
            await call.say(GOODBYE)
            bye = await call.listen(20)
            ended = await call.ended(20)
    finally:
        PORTS.give_back(port)
    # The second chunk was sent 3 s after the first.
    assert free.start_ms - look.start_ms > 2_500
    assert free.start_ms - look.end_ms > 700
    ear = Recognizer((LOOK, FREE, BYE))
    for heard, text in ((look, LOOK), (free, FREE), (bye, BYE)):
        words = await asyncio.to_thread(ear.recognize, heard.pcm, 8000)
        assert normalize(words.text) == normalize(text)
    assert (ended.by, ended.how) == ("remote", "bye")
    record = await placed.record()
    assert outcome(record) == ("completed", "agent_hangup")
    turns = [(turn["transcript"], turn["response"]) for turn in record["transcripts"]]
    assert turns == [(TABLE, f"{LOOK} {FREE}"), (GOODBYE, BYE)]
    latency = record["transcripts"][0]["latency"]
    assert set(latency) >= {"endpointing", "stt", "llm", "tts", "total"}
    assert abs(look.start_ms - asked.end_ms - latency["total"]) < 500
    events = await timeline(gateway, placed.call_id)
    replied = [event["data"] for event in events if event["type"] == "webhook.replied"]
    assert [data["status"] for data in replied] == [200, 200]
    assert replied[0]["firstReplyMs"] < 2_500 < replied[0]["durationMs"]
    written = [json.dumps(events), stack.log_text("gateway"), stack.log_text("worker")]
    assert not [text for text in written if secret in text]


async def test_a_barge_in_aborts_the_answer_and_what_was_not_heard_is_not_on_record(
    gateway: Gateway, phone: Phone
) -> None:
    turns: list[dict[str, Any]] = []
    gone = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        event = await request.json()
        if event["event"] != "agent.message":
            return web.Response()
        turns.append(event)
        if event["data"]["transcript"] != SPECIALS:
            return web.json_response({"text": ENOUGH_ANSWER, "hangup": True})
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            first = {"text": SPECIALS_ANSWER, "interim": True}
            await response.write(json.dumps(first).encode() + b"\n")
            await asyncio.Event().wait()
        finally:
            gone.set()
        raise AssertionError("unreachable")

    agent = await make_agent(gateway, voiceMode="webhook", beginMessage=None)
    async with served(answer) as url:
        await hook(gateway, agent, url)
        placed = await Placed.place(gateway, request(phone.address, agent=agent))
        call = await phone.next_call(10)
        await call.answered(20)
        await told(gateway, placed.call_id, "agent.ready")
        await call.say(SPECIALS)
        await call.speech_begins(20, since_ms=call.now_ms())
        await asyncio.sleep(1.5)
        await call.say(ENOUGH)
        async with asyncio.timeout(20):
            await gone.wait()
        await call.ended(20)
    record = await placed.record()
    cut, last = record["transcripts"]
    heard = cut["response"]
    assert cut["interrupted"] and heard
    assert normalize(SPECIALS_ANSWER).startswith(normalize(heard))
    assert len(heard) < len(SPECIALS_ANSWER)
    assert (last["transcript"], last["response"]) == (ENOUGH, ENOUGH_ANSWER)
    # Every turn was posted once; the second with the heard part of the first one's answer.
    assert [turn["data"]["transcript"] for turn in turns] == [SPECIALS, ENOUGH]
    history = [(entry["direction"], entry["content"]) for entry in turns[1]["recentHistory"]]
    assert history == [("inbound", SPECIALS), ("outbound", heard)]
    assert turns[1]["data"]["confidence"] == pytest.approx(last["confidence"])
    events = [event["type"] for event in await timeline(gateway, placed.call_id)]
    assert events.count("webhook.aborted") == events.count("webhook.replied") == 1


async def test_switching_the_voice_mode_loses_no_call(
    stack: Stack, gateway: Gateway, phone: Phone
) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        event = await request.json()
        if event["event"] == "agent.message":
            asked.append(event["data"]["callId"])
        return web.json_response({"text": FREE})

    agent = await make_agent(gateway, voiceMode="webhook", beginMessage=None)
    line = await Line.attach(stack, gateway, agent)
    switching = asyncio.Event()

    async def switch() -> None:
        while not switching.is_set():
            for mode in ("webhook", "hosted"):
                await set_mode(mode)

    async def set_mode(mode: str) -> None:
        body = {"voiceMode": mode}
        assert (await gateway.request("PATCH", f"/v1/agents/{agent}", json=body)).status == 200

    async with served(answer) as url:
        await hook(gateway, agent, url)
        before = await line.dial(phone)
        await before.answered(20)
        await set_mode("hosted")
        after = await line.dial(phone)
        await after.answered(20)
        async with asyncio.TaskGroup() as tasks:
            switches = tasks.create_task(switch())
            for call in (before, after):
                await call.say(OPENING)
                await call.listen(20)
                await call.hangup()
            for _ in range(3):
                call = await line.dial(phone)
                await call.answered(20)
                await call.hangup()
            switching.set()
            await switches
    records = [await line.record(index=number) for number in range(5)]
    assert [outcome(record) for record in records] == [("completed", "user_hangup")] * 5
    # Each call kept the mode that it began with.
    assert [record["transcripts"][0]["response"] for record in records[:2]] == [
        FREE,
        OPENING_ANSWER,
    ]
    assert asked == [records[0]["id"]]
