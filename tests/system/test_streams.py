"""Calls over Twilio's Media Streams: two gateways, two stream workers, PostgreSQL, and Twilio."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from core.streams.messages import SocketAttach
from dev import scenario
from dev.stack import Stack, StackOptions
from dev.stack.component import Component
from dev.stack.options import HOST
from dev.stack.ports import PORTS
from dev.standins.balancer import Balancer
from dev.standins.socket import SocketFarEnd
from dev.standins.twilio import Answer, Busy, Call, TwilioServer
from tests.conftest import AUTH, GREETING, Gateway, write_agents
from tests.support.calls import told
from tests.support.databases import fresh_database
from tests.system.test_transfers import agent, control

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

ACCOUNT, TOKEN = "AC" + "3" * 32, "the-auth-token"
NUMBER = "+14155550123"
PUBLIC = "voice.example.com"


@dataclass
class Streams:
    """Twilio reaches the gateways by their public name, workers by the balancer."""

    stack: Stack
    twilio: TwilioServer
    gateway: Gateway
    balancer: Balancer

    async def call(self) -> Call:
        """Have somebody call the number, and wait for the first word of the greeting."""
        call = await self.twilio.call(NUMBER, f"+1415{secrets.randbelow(10**7):07}")
        await call.heard.until_sound()
        return call

    async def greeted(self) -> Call:
        call = await self.call()
        await call.heard.until_quiet(for_ms=400)
        return call

    async def task(self, agent_id: str = "restaurant", **fields: Any) -> tuple[str, str]:
        """Make a task; return its path, and the number that it calls."""
        to = f"+1415{secrets.randbelow(8 * 10**6) + 2 * 10**6:07}"
        self.twilio.callee(to, *fields.pop("callees", [Answer()]))
        body = {"to": to, "from": NUMBER, **fields}
        made = await self.gateway.post(f"/v1/agents/{agent_id}/tasks", json=body)
        assert made.status == 202, made.body
        return f"/v1/agents/{agent_id}/tasks/{made.body['id']}", to

    async def calls_to(self, number: str, count: int = 1, timeout_s: float = 20) -> list[Call]:
        """Return the calls that Twilio placed to a number, once there are so many."""
        async with asyncio.timeout(timeout_s):
            while True:
                found = [call for call in self.twilio.calls.values() if call.to == number]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.05)

    async def task_over(self, path: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while (found := await self.gateway.get(path)).body["endedAt"] is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        return dict(found.body)

    async def record(self, call: Call) -> dict[str, Any]:
        """Return the call's record as it is now."""
        listed = await self.gateway.get(f"/v1/calls?search=%2B{call.from_[1:]}")
        (found,) = listed.body["data"]
        return dict((await self.gateway.get(f"/v1/calls/{found['id']}")).body)

    async def ended(self, call: Call) -> dict[str, Any]:
        """Return the call's record once it has ended."""
        found = await self.record(call)
        path = f"/v1/calls/{found['id']}?wait=true&timeout=20"
        return dict((await self.gateway.get(path)).body)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def streams(
    postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Streams]:
    agents = tmp_path_factory.mktemp("agents")
    write_agents(agents, "http://127.0.0.1:9")
    async with contextlib.AsyncExitStack() as stack:
        balancer_port, gateway_port = PORTS.take(HOST), PORTS.take(HOST)
        for port in (balancer_port, gateway_port):
            stack.callback(PORTS.give_back, port)
        enter = stack.enter_async_context
        twilio = await enter(TwilioServer({ACCOUNT: TOKEN}))
        twilio.hosts[PUBLIC] = f"{HOST}:{balancer_port}"
        balancer = await enter(Balancer([gateway_port]).serve(balancer_port))
        options = StackOptions(
            worker=0,
            gateway=2,
            streams=2,
            values={
                **AUTH,
                "agents_dir": agents,
                "default_agent": "greeter",
                "database_url": await fresh_database(postgres),
                "gateway_port": gateway_port,
                "gateway_url": balancer.url,
                "public_url": f"https://{PUBLIC}",
                "twilio_base_url": twilio.url,
                "endpointing_ms": 300,
                "webhook_allow_private": True,
            },
        )
        running = await enter(Stack(options))
        await running.set_providers(control())
        balancer.ports.append(port_of(running, "gateway-2"))
        session = await enter(aiohttp.ClientSession(balancer.url))
        gateway = Gateway(session)
        secret = {"accountSid": ACCOUNT, "authToken": TOKEN}
        made = await gateway.post(
            "/api/v1/credentials", json={"name": "twilio", "provider": "twilio", **secret}
        )
        assert made.status == 201, made.body
        twilio.give(ACCOUNT, NUMBER)
        attached = await gateway.post(
            "/api/v1/phone-numbers/attach",
            json={
                "provider": "twilio",
                "phoneNumber": NUMBER,
                "credentialsRef": "twilio",
                "agentId": "restaurant",
                "direction": "both",
                "via": "stream",
            },
        )
        assert attached.status == 201, attached.body
        yield Streams(running, twilio, gateway, balancer)


def port_of(stack: Stack, name: str) -> int:
    return int(stack.components[name].address.rpartition(":")[2])


async def test_an_inbound_call(streams: Streams) -> None:
    call = await streams.greeted()
    said = await call.caller.say(scenario.OPENING)
    await call.heard.until_sound(said.end_ms)
    await call.heard.until_quiet()
    said = await call.caller.say(scenario.GOODBYE)
    assert await call.ended() == "completed"
    record = await streams.ended(call)
    assert (record["type"], record["direction"]) == ("stream", "inbound")
    assert (record["status"], record["disconnectionReason"]) == ("completed", "agent_hangup")
    assert [turn["response"] for turn in record["transcripts"]] == [
        GREETING,
        scenario.OPENING_ANSWER,
        scenario.GOODBYE_ANSWER,
    ]
    assert call.stream.longest_queue_ms <= 400


async def test_the_caller_hangs_up(streams: Streams) -> None:
    call = await streams.greeted()
    await call.caller.press("5")
    call.hang_up()
    record = await streams.ended(call)
    assert (record["status"], record["disconnectionReason"]) == ("completed", "user_hangup")


async def test_the_api_hangs_up(streams: Streams) -> None:
    call = await streams.greeted()
    record = await streams.record(call)
    ended = await streams.gateway.post(f"/v1/calls/{record['id']}/end")
    assert ended.status == 200, ended.body
    assert await call.ended() == "completed"
    record = await streams.ended(call)
    assert (record["status"], record["disconnectionReason"]) == ("completed", "agent_hangup")


async def goes_on(call: Call, number: int) -> None:
    """The caller is connected again, is not greeted again, and is answered."""
    stream = await call.streaming(number)
    quiet_ms = await call.heard.until_quiet()
    said = await call.caller.say(scenario.OPENING)
    answer_ms = await call.heard.until_sound(said.end_ms)
    assert quiet_ms < said.start_ms < answer_ms
    await call.heard.until_quiet()
    assert stream.live
    call.hang_up()


@pytest.mark.parametrize("after_break", ["redirect", "callback"])
async def test_a_broken_connection(streams: Streams, after_break: Any) -> None:
    streams.twilio.after_break = after_break
    try:
        call = await streams.greeted()
    finally:
        streams.twilio.after_break = "redirect"
    streams.balancer.cut()
    await goes_on(call, 2)
    record = await streams.ended(call)
    assert record["disconnectionReason"] == "user_hangup"
    assert [turn["response"] for turn in record["transcripts"]] == [
        GREETING,
        scenario.OPENING_ANSWER,
    ]


async def test_a_caller_whose_connection_is_dead(streams: Streams) -> None:
    """A half-open connection is noticed; nobody says that it is lost."""
    call = await streams.greeted()
    record = await streams.record(call)
    call.caller.freeze()
    await told(streams.gateway, record["id"], "stream.lost")


async def test_a_caller_that_stops_reading(streams: Streams) -> None:
    call = await streams.greeted()
    call.caller.pause_reading()
    await goes_on(call, 2)
    assert (await streams.ended(call))["disconnectionReason"] == "user_hangup"


async def test_ten_calls_outlive_their_gateway(streams: Streams) -> None:
    calls = await asyncio.gather(*(streams.call() for _ in range(10)))
    await asyncio.sleep(0.5)
    before = [call.heard.ms for call in calls]
    await streams.stack.gateway.kill()
    for call in calls:
        await call.streaming(2, timeout_s=3)
    for call, ms in zip(calls, before, strict=True):
        assert await call.heard.until_sound(max(ms, call.heard.ms - 20)) - ms < 3000
    await asyncio.gather(*(goes_on(call, 2) for call in calls))
    for call in calls:
        record = await streams.ended(call)
        assert record["disconnectionReason"] == "user_hangup"
        assert [turn["response"] for turn in record["transcripts"]] == [
            GREETING,
            scenario.OPENING_ANSWER,
        ]
    await streams.stack.gateway.start()


async def test_a_worker_that_drains_finishes_its_calls(streams: Streams) -> None:
    calls = [await streams.greeted() for _ in range(4)]
    stopping = asyncio.create_task(streams.stack.streams.stop())
    await asyncio.sleep(1)
    await asyncio.gather(*(goes_on(call, 1) for call in calls))
    for call in calls:
        assert (await streams.ended(call))["disconnectionReason"] == "user_hangup"
    await stopping
    await streams.stack.streams.start()


async def test_a_task_is_repeated_and_talks(streams: Streams) -> None:
    retry = {"maxAttempts": 3, "delaySeconds": 10}
    path, to = await streams.task(callees=[Busy(), Answer()], retry=retry, goal="A table")
    _, call = await streams.calls_to(to, 2, timeout_s=40)
    await call.heard.until_sound()
    await call.heard.until_quiet(for_ms=400)
    said = await call.caller.say(scenario.OPENING)
    await call.heard.until_sound(said.end_ms)
    await call.heard.until_quiet()
    await call.caller.say(scenario.GOODBYE)
    assert await call.ended() == "completed"
    task = await streams.task_over(path)
    assert (task["status"], task["attempts"]) == ("completed", 2)
    busy, talk = [
        (await streams.gateway.get(f"/v1/calls/{call_id}?wait=true&timeout=20")).body
        for call_id in task["calls"]
    ]
    assert (busy["status"], talk["status"]) == ("busy", "completed")
    assert (talk["direction"], talk["disconnectionReason"]) == ("outbound", "agent_hangup")
    assert [turn["response"] for turn in talk["transcripts"]] == [
        GREETING,
        scenario.OPENING_ANSWER,
        scenario.GOODBYE_ANSWER,
    ]


async def test_gateways_that_die_while_twilio_is_asked_dial_once(streams: Streams) -> None:
    fault = streams.twilio.fail(r"POST .*/Calls\.json", late=True, hang=True, times=1)
    path, to = await streams.task(callees=[Answer(after_ms=None)], retry={"maxAttempts": 3})
    await asyncio.wait_for(fault.hit.wait(), 20)
    gateways = [streams.stack.gateway, streams.stack.components["gateway-2"]]
    await asyncio.gather(*(gateway.kill() for gateway in gateways))
    await asyncio.gather(*(gateway.start() for gateway in gateways))
    (call,) = await streams.calls_to(to)
    await asyncio.sleep(20)  # the lease of the one that died ends
    call.pick_up()
    await call.heard.until_sound()
    call.hang_up()
    task = await streams.task_over(path)
    assert (task["status"], task["attempts"]) == ("completed", 1)
    assert len(await streams.calls_to(to)) == 1
    streams.twilio.take_alerts()


async def test_a_caller_is_transferred(streams: Streams) -> None:
    human = f"+1415{secrets.randbelow(8 * 10**6) + 2 * 10**6:07}"
    streams.twilio.callee(human, Busy(), Answer(after_ms=None))
    agent_id = await agent(streams.gateway, transferNumber=human, beginMessage="Hello there.")
    path, to = await streams.task(agent_id)
    (call,) = await streams.calls_to(to)
    await call.heard.until_sound()
    await call.heard.until_quiet(for_ms=400)
    await call.caller.press("9")
    await call.streaming(2)
    # The human was busy, which the agent says on the new stream.
    sorry_ms = await call.heard.until_sound(call.heard.ms)
    await call.heard.until_quiet(sorry_ms)
    await call.caller.press("9")
    leg = await call.dialling(2)
    await leg.reached("ringing")
    leg.pick_up()
    call_id = (await streams.gateway.get(path)).body["callId"]
    record = (await streams.gateway.get(f"/v1/calls/{call_id}?wait=true&timeout=20")).body
    assert (record["status"], record["disconnectionReason"]) == ("completed", "call_transfer")
    await asyncio.sleep(1)
    assert (call.status, leg.status) == ("in-progress", "in-progress"), "they still talk"
    leg.hang_up()
    assert await call.ended() == "completed"
    assert (await streams.task_over(path))["status"] == "completed"


# --- agents that are lost


async def busy_worker(streams: Streams) -> Component:
    """Return the stream worker that has the one session there is."""
    async with asyncio.timeout(20):
        while True:
            found = []
            for name in ("streams", "streams-2"):
                worker = streams.stack.components[name]
                async with streams.gateway.session.get(f"{worker.address}/readyz") as answer:
                    found += [worker] * (await answer.json())["sessions"]
            if len(found) == 1:
                return found[0]
            await asyncio.sleep(0.1)


async def timeline(streams: Streams, call_id: str) -> list[dict[str, Any]]:
    answer = await streams.gateway.get(f"/v1/calls/{call_id}/diagnosis")
    return list(answer.body["timeline"])


async def without_sessions(streams: Streams, worker: Component) -> None:
    async with asyncio.timeout(20):
        while True:
            async with streams.gateway.session.get(f"{worker.address}/readyz") as answer:
                if (await answer.json())["sessions"] == 0:
                    return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("way", ["killed", "frozen"])
async def test_a_stream_outlives_its_worker(streams: Streams, way: str) -> None:
    call = await streams.greeted()
    call_id = (await streams.record(call))["id"]
    worker, stream = await busy_worker(streams), call.stream
    before_ms = call.heard.ms
    if way == "killed":
        await worker.kill()
    else:
        worker.process.signal(signal.SIGSTOP)
    again_ms = await call.heard.until_sound(before_ms + 200)
    await call.heard.until_quiet(for_ms=400)
    if way == "frozen":
        worker.process.signal(signal.SIGCONT)
        await without_sessions(streams, worker)
    said = await call.caller.say(scenario.OPENING)
    assert await call.heard.until_sound(said.end_ms) > again_ms
    await call.heard.until_quiet(for_ms=1000)
    assert stream.live and call.stream is stream, "Twilio has noticed nothing"
    assert stream.clears, "what the lost agent had sent ahead was dropped"
    call.hang_up()
    record = await streams.ended(call)
    assert (record["status"], record["disconnectionReason"]) == ("completed", "user_hangup")
    heard = record["transcripts"][-1]["response"]  # the caller may have hung up in a pause
    assert heard and scenario.OPENING_ANSWER.startswith(heard)
    types = [line["type"] for line in await timeline(streams, call_id)]
    assert types.count("agent.lost") == 1
    assert types.count("agent.joined") == 2
    if way == "killed":
        await worker.start()


@pytest.mark.parametrize("way", ["killed", "frozen"])
async def test_a_client_keeps_its_socket(streams: Streams, way: str) -> None:
    path = "/v1/agents/restaurant/session"
    made = await streams.gateway.post(path, json={})
    assert made.status == 201, made.body

    async def connect(_: SocketAttach) -> aiohttp.ClientWebSocketResponse:
        protocols = ("switchroom", f"token.{made.body['token']}")
        return await streams.gateway.session.ws_connect(path, protocols=protocols)

    client = SocketFarEnd(connect, "")
    await client.attach()
    await client.event("transcript", role="agent", text=GREETING, final=True)
    worker = await busy_worker(streams)
    before_ms = client.heard.ms
    if way == "killed":
        await worker.kill()
    else:
        worker.process.signal(signal.SIGSTOP)
    await client.event("clear")
    await client.heard.until_sound(before_ms + 600)
    await client.heard.until_quiet(for_ms=400)
    if way == "frozen":
        worker.process.signal(signal.SIGCONT)
        await without_sessions(streams, worker)
    await client.send("text", text=scenario.OPENING)
    await client.event("transcript", role="agent", text=scenario.OPENING_ANSWER, final=True)
    assert not client.socket.closed
    assert len(client.of("ready")) == 1
    numbers = [event["seq"] for event in client.events]
    assert numbers == sorted(set(numbers))
    await client.send("end")
    await client.event("ended", reason="user_hangup")
    if way == "killed":
        await worker.start()


async def test_ten_agents_are_killed_at_random(streams: Streams) -> None:
    chance = random.Random(19)
    lost = 0
    while lost < 10:
        calls = await asyncio.gather(*(streams.call() for _ in range(6)))
        ids = [(await streams.record(call))["id"] for call in calls]
        await asyncio.sleep(chance.uniform(0, 1.5))
        worker = streams.stack.components[chance.choice(["streams", "streams-2"])]
        before = [call.heard.ms for call in calls]
        await worker.kill()
        gone = [
            call
            for call, call_id in zip(calls, ids, strict=True)
            if await heard_of_a_loss(streams, call_id)
        ]
        for call, ms in zip(calls, before, strict=True):
            if call in gone:
                await call.heard.until_sound(ms + 600)
            await call.heard.until_quiet()
        said = await asyncio.gather(*(call.caller.say(scenario.OPENING) for call in calls))
        for call, words in zip(calls, said, strict=True):
            await call.heard.until_sound(words.end_ms)
            assert len(call.streams) == 1 and call.stream.live
        for call in calls:
            await call.heard.until_quiet(for_ms=1000)
            call.hang_up()
        for call in calls:
            record = await streams.ended(call)
            assert record["disconnectionReason"] == "user_hangup"
            heard = record["transcripts"][-1]["response"]  # the caller may have hung up in a pause
            assert heard and scenario.OPENING_ANSWER.startswith(heard)
        lost += len(gone)
        await worker.start()


async def heard_of_a_loss(streams: Streams, call_id: str) -> bool:
    """Return True if the agent is lost. A relay notices a kill within milliseconds."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + 1
    while clock() < deadline:
        if any(line["type"] == "agent.lost" for line in await timeline(streams, call_id)):
            return True
        await asyncio.sleep(0.1)
    return False
