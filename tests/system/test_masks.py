"""Masks and secret digits, from the API and the phone to everything that the stack wrote."""

from __future__ import annotations

import asyncio
import contextlib
import json
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web

from core.models import new_id
from core.streams.messages import SocketAttach
from dev.phone import Phone
from dev.providers import Control, Deepgram, OpenAI, Rule, Script, ToolCall
from dev.stack import Stack, StackOptions
from dev.standins.socket import SocketFarEnd
from tests.conftest import ACME, AUTH, Gateway, write_agents
from tests.support.calls import request
from tests.support.receiver import Received, Receiver, receiving
from worker.streams.tones import tone

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

PAY, OPENING, BYE = "i want to pay", "what are your opening hours", "thank you and goodbye"
ASK, PAID, HOURS = "Type your number.", "It is paid.", "We are open from five."
CARD, IN_MASK, PRESSED = "4815162342987", "90817263", "55"
RULES = [
    Rule(
        keywords=["pay"],
        reply=ASK,
        call=ToolCall(name="collect_digits", arguments={"digits": len(CARD), "secret": True}),
    ),
    Rule(
        role="tool",
        tool_name="collect_digits",
        keywords=["secret"],
        call=ToolCall(name="charge", arguments={"card": {"number": "{{digits_1}}"}}),
    ),
    Rule(role="tool", tool_name="charge", keywords=["digits"], reply=PAID),
    Rule(keywords=["opening"], reply=HOURS),
    Rule(keywords=["pressed"], reply="Thank you."),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A stack of its own: everything that it wrote is looked through."""
    agents, store = tmp_path_factory.mktemp("agents"), tmp_path_factory.mktemp("store")
    write_agents(agents)
    values = {
        "recordings_url": store.as_uri(),
        **AUTH,
        "agents_dir": agents,
        "default_agent": "greeter",
        "webhook_allow_private": True,
        "log_level": "DEBUG",
        "log_redact": False,
        "endpointing_ms": 300,
    }
    async with Stack(StackOptions(streams=1, values=values)) as running:
        script = Script(rules=RULES, default="Sorry?")
        await running.set_providers(
            Control(
                deepgram=Deepgram(phrases=[PAY, OPENING, BYE]),
                openai=OpenAI(scripts={"default": script}),
            )
        )
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(stack: Stack) -> AsyncIterator[Gateway]:
    async with aiohttp.ClientSession(stack.gateway_url) as session:
        yield Gateway(session)


@pytest_asyncio.fixture(loop_scope="session")
async def tenant(gateway: Gateway) -> AsyncIterator[Receiver]:
    """The tenant's server: a tool that repeats what it gets, and a webhook for events."""

    async def charge(received: Received) -> web.StreamResponse:
        return web.json_response({"charged": received.body})

    async with receiving() as receiver:
        receiver.answers["/charge"] = charge
        made = await gateway.post("/v1/webhooks", json={"url": f"{receiver.url}/events"})
        assert made.status == 200, made.body
        yield receiver


@dataclass
class Talk:
    """A call, by what its far end does."""

    gateway: Gateway
    call_id: str
    say: Callable[[str], Awaitable[object]]
    press: Callable[[str], Awaitable[object]]
    hang_up: Callable[[], Awaitable[object]]

    async def control(self, action: str, **body: Any) -> dict[str, Any]:
        path = f"/v1/calls/{self.call_id}/recording/{action}"
        answer = await self.gateway.post(path, json=body or None)
        assert answer.status == 200, answer.body
        return dict(answer.body)

    async def events(self) -> list[dict[str, Any]]:
        """Return the events of the call, which is over."""
        return [event async for event in self._live()]

    async def told(self, type: str, count: int = 1, **data: Any) -> None:
        """Wait until the timeline has so many of these events."""
        seen = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                async for event in self._live():
                    seen.append(event)
                    if event["type"] == type and data.items() <= event["data"].items():
                        count -= 1
                    if not count:
                        return
        raise AssertionError(f"no {type} {data}, but {seen}")

    async def _live(self) -> AsyncIterator[dict[str, Any]]:
        path = f"/v1/calls/{self.call_id}/events"
        async with self.gateway.session.get(path, headers=ACME) as events:
            async for line in events.content:
                if line.startswith(b"data: ") and "type" in (event := json.loads(line[6:])):
                    yield event


async def agent(gateway: Gateway, tenant: Receiver) -> str:
    tool = {
        "name": "charge",
        "description": "Charges a card.",
        "url": f"{tenant.url}/charge",
        "parameters": {
            "type": "object",
            "properties": {
                "card": {
                    "type": "object",
                    "properties": {"number": {"type": "string", "pattern": "^[0-9]+$"}},
                }
            },
        },
    }
    made = await gateway.post(
        "/v1/agents",
        json={
            "name": "Cashier",
            "voiceMode": "hosted",
            "beginMessage": "Hello.",
            "customTools": [tool],
            "recording": {"enabled": True},
        },
    )
    assert made.status == 200, made.body
    return str(made.body["id"])


async def goes_through_it(talk: Talk, stack: Stack, tenant: Receiver) -> None:
    """Pay by card, be masked, pause; then look for what was masked in everything."""
    await talk.told("turn")
    await talk.say(PAY)
    await talk.told("recording.masked", by="agent")
    await talk.press(CARD)
    await talk.told("recording.unmasked")
    # The answer overlaps the mask; what the caller said before it stays.
    await talk.told("turn", 2, masked=True)

    masked = await talk.control("mask", seconds=20)
    assert (masked["recording"], masked["until"] is not None) == ("masked", True)
    await talk.press(IN_MASK)
    await talk.say(OPENING)
    await asyncio.sleep(0.5)  # the last words are still on their way
    assert (await talk.control("resume"))["recording"] == "on"
    await talk.told("recording.unmasked", 2)

    assert (await talk.control("pause"))["recording"] == "paused"
    await talk.press(PRESSED)
    # What was pressed in the pause is answered, though nothing of it is kept.
    await talk.told("turn", 4, masked=True)
    assert (await talk.control("resume"))["recording"] == "on"
    await asyncio.sleep(0.5)  # a turn that touches the pause is not kept
    await talk.say(OPENING)
    await talk.told("turn", response=HOURS)
    await talk.hang_up()

    events = await talk.events()
    keys = [event["data"] for event in events if event["type"] == "dtmf.received"]
    assert keys == [{"masked": True}] * len(CARD + IN_MASK + PRESSED)
    turns = [event["data"] for event in events if event["type"] == "turn"]
    assert [turn["response"] for turn in turns].count(HOURS) == 1, "nobody heard it in the mask"
    (paid,) = [turn for turn in newest(turns) if turn["transcript"] == PAY]
    assert paid["masked"] and ASK not in paid["response"]
    assert [received.body for received in tenant.at("/charge")] == [{"card": {"number": CARD}}]

    await tenant.until(lambda: any(talk.call_id in str(got.body) for got in tenant.at("/events")))
    log = await stack.provider_log()
    written = dict(everything(stack.run_dir))
    assert {"gateway.log", "worker.log"} <= {path.name for path in map(Path, written)}
    written |= {
        "what the tenant got": b"".join(got.raw for got in tenant.at("/events")),
        "what the providers got": json.dumps(log).encode(),
        "the timeline": json.dumps(events).encode(),
        "the record": json.dumps(await record(talk)).encode(),
    }
    assert b"{{digits_1}}" in written["what the providers got"]
    found = [
        (where, digits)
        for where, data in written.items()
        for digits in (CARD, CARD[4:], IN_MASK)
        if digits.encode() in data
    ]
    assert found == []
    await asyncio.to_thread(silent_where_shut, recording(stack, talk.call_id), events)


def newest(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({turn["id"]: turn for turn in turns}.values())


def recording(stack: Stack, call_id: str) -> Path:
    """Return the recording, in its store or still in a spool."""
    store = Path(str(stack.settings.recordings_url).removeprefix("file://"))
    found = [*store.rglob("*.wav"), *stack.run_dir.rglob("*.wav")]
    return next(path for path in found if call_id in str(path))


def silent_where_shut(path: Path, events: list[dict[str, Any]]) -> None:
    """Expect zeros on both channels while the call was masked or paused, and sound around it."""
    with wave.open(str(path)) as file:
        rate = file.getframerate()
        frames = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, 2)
    answered = next(
        at(one) for one in events if one["type"] == "call.answered" and one["source"] == "worker"
    )
    shut_at: float | None = None
    spans = []
    for one in events:
        if one["type"] in ("recording.masked", "recording.paused"):
            shut_at = shut_at or at(one)
        elif one["type"] in ("recording.unmasked", "recording.resumed") and shut_at is not None:
            spans.append((shut_at - answered, at(one) - answered))
            shut_at = None
    assert len(spans) == 3
    # Events have whole milliseconds, and each is posted just after the gate has moved.
    pieces = [frames[round((a + 0.02) * rate) : round((b - 0.02) * rate)] for a, b in spans]
    assert [int(np.abs(piece).max()) for piece in pieces] == [0, 0, 0]
    after = frames[round((spans[-1][1] + 0.5) * rate) :]
    assert (np.abs(after).max(axis=0) > 1000).all()
    assert (np.abs(frames[: round(spans[0][0] * rate)]).max(axis=0) > 1000).all()


def at(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file that the stack has written: databases, spools, logs."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path), path.read_bytes()


async def record(talk: Talk) -> Any:
    return (await talk.gateway.get(f"/v1/calls/{talk.call_id}")).body


async def test_on_a_phone(stack: Stack, gateway: Gateway, tenant: Receiver, phone: Phone) -> None:
    """Keys come by RFC 4733, and their tones are in the audio as well."""
    body = request(phone.address, agent=await agent(gateway, tenant), record=True)
    answer = await gateway.post("/sip/call", json=body)
    assert answer.status == 200, answer.body
    call = await phone.next_call(10)
    await call.answered(10)

    async def press(keys: str) -> None:
        gap = np.zeros(800, np.int16)
        tones = [np.concatenate([tone(key, 8000), gap]) for key in keys]
        await asyncio.gather(call.dtmf(keys), call.play(np.concatenate(tones)))

    talk = Talk(gateway, answer.body["call_id"], call.say, press, call.hangup)
    await goes_through_it(talk, stack, tenant)


async def test_on_a_socket(stack: Stack, gateway: Gateway, tenant: Receiver) -> None:
    path = f"/v1/agents/{await agent(gateway, tenant)}/session"
    made = await gateway.post(path, json={"record": True})
    assert made.status == 201, made.body

    async def connect(_: SocketAttach) -> aiohttp.ClientWebSocketResponse:
        protocols = ("switchroom", f"token.{made.body['token']}")
        return await gateway.session.ws_connect(path, protocols=protocols)

    end = SocketFarEnd(connect, new_id("unused"))
    await end.attach()

    async def press(keys: str) -> None:
        for key in keys:
            await end.send("dtmf", digit=key)

    talk = Talk(gateway, made.body["sessionId"], end.say, press, end.close)
    await goes_through_it(talk, stack, tenant)
