"""A gateway that is killed during a dial, and webhooks that arrive twice and out of order."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from dev.phone import Answer, Phone, Reject
from dev.stack import Stack, StackOptions
from dev.stack.options import HOST
from dev.stack.ports import PORTS
from dev.standins.balancer import Balancer
from tests.conftest import AUTH, Gateway, write_agents
from tests.support.calls import Placed, request, told
from tests.support.databases import fresh_database
from tests.system.test_endings import left_nothing

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

KEY, SECRET = "webhook-test", "a-secret-for-webhooks-of-32-bytes!"


async def test_killed_while_the_phone_rings(tmp_path: Path, phone: Phone) -> None:
    """The phone is not dialled again, the agent still talks, and the record is finished."""
    write_agents(tmp_path)
    values = {**AUTH, "agents_dir": tmp_path, "default_agent": "greeter"}
    phone.behave(Answer(after_s=6))
    async with (
        Stack(StackOptions(values=values)) as own,
        aiohttp.ClientSession(own.gateway_url) as session,
    ):
        gateway = Gateway(session)
        call = await Placed.place(gateway, request(phone.address))
        up = await phone.next_call(5)
        await own.gateway.kill()
        await own.gateway.start()
        await up.answered(20)
        await up.listen(20)
        await up.hangup()
        assert await call.outcome() == ("completed", "user_hangup", None)
        assert phone.invites == 1
        await left_nothing(own, call.room)


@contextlib.contextmanager
def ports(count: int) -> Iterator[list[int]]:
    taken = [PORTS.take(HOST) for _ in range(count)]
    try:
        yield taken
    finally:
        for port in taken:
            PORTS.give_back(port)


async def test_another_gateway_follows_the_dials_of_a_killed_one(
    tmp_path: Path, postgres: str, phone: Phone
) -> None:
    """One phone answers after the kill, one refuses: both records are finished by the other."""
    write_agents(tmp_path)
    phone.behave(Answer(after_s=8))
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        gateway_port, balancer_port = stack.enter_context(ports(2))
        balancer = await enter(Balancer([gateway_port]).serve(balancer_port))
        busy = await enter(Phone())
        busy.behave(Reject(486, after_s=8))
        values = {
            **AUTH,
            "agents_dir": tmp_path,
            "default_agent": "greeter",
            "database_url": await fresh_database(postgres),
            "gateway_port": gateway_port,
            "gateway_url": balancer.url,
        }
        own = await enter(Stack(StackOptions(gateway=2, values=values)))
        balancer.ports.append(int(own.components["gateway-2"].address.rpartition(":")[2]))
        gateway = Gateway(await enter(aiohttp.ClientSession(balancer.url)))
        answers = await Placed.place(gateway, request(phone.address))
        refuses = await Placed.place(gateway, request(busy.address))
        up = await phone.next_call(5)
        await told(gateway, refuses.call_id, "call.ringing")
        await own.gateway.kill()
        assert await refuses.outcome() == ("busy", "dial_busy", None)
        await up.answered(20)
        await told(gateway, answers.call_id, "call.answered")
        await up.listen(20)
        await up.hangup()
        assert await answers.outcome() == ("completed", "user_hangup", None)
        assert (phone.invites, busy.invites) == (1, 1)


class Disorder:
    """Holds LiveKit's webhooks back, then delivers them in reverse order, each twice."""

    def __init__(self) -> None:
        self.gateway_url = ""
        self.answers: list[int] = []
        self.room_finished = asyncio.Event()
        self._held: list[tuple[bytes, dict[str, str]]] = []

    async def take(self, request: web.Request) -> web.Response:
        headers = {name: request.headers[name] for name in ("Authorization", "Content-Type")}
        body = await request.read()
        self._held.append((body, headers))
        if json.loads(body)["event"] == "room_finished":
            self.room_finished.set()
        return web.Response()

    async def deliver(self) -> None:
        held, self._held = self._held, []
        async with aiohttp.ClientSession(self.gateway_url) as session:
            for body, headers in reversed(held):
                for _ in range(2):
                    async with session.post(
                        "/livekit/webhook", data=body, headers=headers
                    ) as answer:
                        self.answers.append(answer.status)


@contextlib.asynccontextmanager
async def disorder() -> AsyncIterator[tuple[Disorder, str]]:
    disorder = Disorder()
    app = web.Application()
    app.router.add_post("/", disorder.take)
    runner = web.AppRunner(app)
    await runner.setup()
    port = PORTS.take(HOST)
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield disorder, f"http://{HOST}:{port}/"
    finally:
        await runner.cleanup()
        PORTS.give_back(port)


async def test_webhooks_late_backwards_and_twice(tmp_path: Path, phone: Phone) -> None:
    """Webhooks that arrive after the end of a call do not change its record."""
    write_agents(tmp_path)
    async with disorder() as (webhooks, url):
        options = StackOptions(
            values={
                **AUTH,
                "agents_dir": tmp_path,
                "default_agent": "greeter",
                "livekit_api_key": KEY,
                "livekit_api_secret": SECRET,
            },
            livekit_config={"webhook": {"api_key": KEY, "urls": [url]}},
        )
        async with Stack(options) as own, aiohttp.ClientSession(own.gateway_url) as session:
            webhooks.gateway_url = own.gateway_url
            gateway = Gateway(session)
            call = await Placed.place(gateway, request(phone.address))
            up = await phone.next_call(5)
            await up.answered(10)
            await told(gateway, call.call_id, "call.answered")
            await webhooks.deliver()  # while the call is up
            await up.listen(20)
            await up.hangup()
            before = await call.record()
            await left_nothing(own, call.room)
            # The last webhook says that the room is finished; LiveKit has deleted it by then.
            await asyncio.wait_for(webhooks.room_finished.wait(), 10)
            await webhooks.deliver()
            assert len(webhooks.answers) >= 8
            assert set(webhooks.answers) == {200}
            after = (await gateway.get(f"/v1/calls/{call.call_id}")).body
            kept = ("status", "disconnectionReason", "sipStatusCode", "answeredAt", "endedAt")
            assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
            assert (after["status"], after["disconnectionReason"]) == ("completed", "user_hangup")
