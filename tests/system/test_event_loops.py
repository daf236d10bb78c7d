"""Nothing blocks an event loop: not the gateway's, the bridge's, the worker's, nor a job's."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import aiohttp
import pytest
from livekit.protocol.sip import CreateSIPInboundTrunkRequest, SIPInboundTrunkInfo

from dev import loop_watch, scenario
from dev.caller import converse
from dev.demo import reservations_server
from dev.loop_watch import Allowed
from dev.phone import Phone
from dev.scenario import GOODBYE, GOODBYE_ANSWER, OPENING, OPENING_ANSWER, TABLE, TABLE_ANSWER
from dev.scenario import Speak as Says
from dev.stack import Stack, StackOptions
from dev.stack.options import ROOT
from tests.conftest import ACME, AUTH, Gateway, write_agents
from tests.support.calls import Placed, request

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

STEPS = (
    Says(OPENING, OPENING_ANSWER),
    Says(TABLE, TABLE_ANSWER),
    Says(GOODBYE, GOODBYE_ANSWER),
)

ALLOWED = (
    Allowed("gateway/app.py", "create_app", "files and tables, before the first request"),
    # It runs in a greenlet, where the recorded stack ends.
    Allowed(
        "gateway/store/migrations/__init__.py", "upgrade", "the schema, before the first request"
    ),
    Allowed("sip/bridge/__main__.py", "serve", "before the first call, and after the last"),
    Allowed("process_collector.py", "collect", "the kernel's own words, in /proc: no disk"),
    Allowed("livekit/agents/worker.py", "run", "livekit-agents, before the worker registers"),
    Allowed("livekit/agents/job.py", "__init__", "livekit-agents' folder of a job, at its start"),
)

_PLANTED = """
import asyncio, multiprocessing, socket, sqlite3, sys, time, uvloop

async def plant(what):
    match what:
        case "sleep":
            time.sleep(0.001)
        case "file":
            open(__file__).read()
        case "address":
            socket.getaddrinfo("localhost", 80)
        case "database":
            sqlite3.connect(":memory:").execute("SELECT 1")
        case "none":
            await asyncio.to_thread(time.sleep, 0.001)

def child(what):
    uvloop.run(plant(what))

if __name__ == "__main__":
    for what in ("sleep", "file", "address", "database", "none"):
        process = multiprocessing.get_context("forkserver").Process(target=child, args=(what,))
        process.start()
        process.join()
    asyncio.run(plant("sleep"))
"""


async def test_the_watch_sees_what_blocks(tmp_path: Path) -> None:
    script, folder = tmp_path / "planted.py", tmp_path / "watch"
    script.write_text(_PLANTED)
    env = {**os.environ, **loop_watch.variables(folder, ROOT)}
    child = await asyncio.create_subprocess_exec(sys.executable, str(script), env=env)
    async with asyncio.timeout(60):
        assert await child.wait() == 0
    found = loop_watch.found(folder)
    own = [each for each in found if each.stack[0][0] == str(script)]
    assert {(each.call, "forkserver" in each.process) for each in own} == {
        ("time.sleep", True),
        ("time.sleep", False),
        ("open", True),
        ("io.TextIOWrapper.read", True),
        ("sqlite3.Connection.execute", True),
    }
    assert "socket.getaddrinfo" in {each.call for each in found}
    assert not loop_watch.found(folder, [Allowed("planted.py", "plant", "to be seen through")])


async def test_nothing_blocks_while_a_call_is_held(tmp_path: Path) -> None:
    folder = tmp_path / "watch"
    watched = loop_watch.variables(folder, ROOT)
    async with reservations_server() as tool_url, Phone() as phone:
        write_agents(tmp_path, tool_url)
        options = StackOptions(
            env=dict.fromkeys(("gateway", "bridge", "worker"), watched),
            values={**AUTH, "agents_dir": tmp_path, "default_agent": "greeter"},
        )
        async with Stack(options) as stack, aiohttp.ClientSession(stack.gateway_url) as http:
            await stack.set_providers(scenario.control())
            gateway = Gateway(http)
            placed = await Placed.place(gateway, request(phone.address, agent="restaurant"))
            call = await phone.next_call(20)
            await call.answered(20)
            await call.listen(30)
            assert len([exchange async for exchange in converse(call, STEPS)]) == len(STEPS)
            await call.ended(20)
            assert (await placed.outcome())[0] == "completed"
            await _use_the_api(gateway)
            async with stack.sip_api() as sip:
                trunk = SIPInboundTrunkInfo(name="a trunk", numbers=["+15105550100"])
                await sip.sip.create_inbound_trunk(CreateSIPInboundTrunkRequest(trunk=trunk))
    processes = " ".join(loop_watch.watched(folder))
    for each in ("-m gateway", "-m sip.bridge", "-m worker", "multiprocessing.forkserver"):
        assert each in processes
    assert "\n\n".join(map(str, loop_watch.found(folder, ALLOWED))) == ""


async def _use_the_api(gateway: Gateway) -> None:
    made = await gateway.post("/v1/agents", json={"name": "Waiter", "voiceMode": "hosted"})
    assert made.status == 200, made.body
    token = {
        "room_name": "a-room",
        "participant_name": "John Doe",
        "participant_identity": "john",
    }
    assert (await gateway.post("/livekit/token", json=token)).status == 200
    for path in ("/v1/calls", "/v1/agents", "/livekit/rooms", "/readyz", "/openapi.json"):
        assert (await gateway.get(path)).status == 200, path
    for path in ("/metrics", "/try/greeter"):
        async with gateway.session.get(path, headers=ACME) as answer:
            await answer.read()
