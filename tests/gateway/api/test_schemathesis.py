"""schemathesis tests the whole OpenAPI document against a gateway with all that it needs.

It runs against a real stack, with authentication on, not against the in-process gateway: LiveKit
does not answer there, so half of the routes would end in a documented 500 or 503 before they did
anything. Here nothing is missing, so every 5xx is a fault. The dial policy blocks every
destination; otherwise the fuzzer would send INVITEs to arbitrary addresses.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from livekit.api import LiveKitAPI
from livekit.protocol.room import CreateRoomRequest

from core.jobs import Heartbeat, dispatch_name
from core.settings import Settings
from core.tokens import TokenIssuer
from dev.process import inherited_environment
from dev.stack import Stack, StackOptions
from dev.standins.twilio import TwilioServer
from tests.conftest import AUTH, SECRETS, Gateway, write_agents
from tests.support.edge import served
from worker.link.client import Gateway as WorkersGateway

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

ACCOUNT, TOKEN = "AC" + "1" * 32, "the-auth-token"
OF_EACH = 6  # the fuzzer deletes some
DEADLINE_S = 600
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


@pytest_asyncio.fixture(loop_scope="session")
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    write_agents(tmp_path)
    async with TwilioServer({ACCOUNT: TOKEN}) as twilio:
        for number in range(100):
            twilio.offer(f"+1415555{number:04d}")
        values = {
            **AUTH,
            "agents_dir": tmp_path,
            "default_agent": "greeter",
            "sip_outbound_address": "127.0.0.1:9",
            "dial_blocked_prefixes": [f"{plus}{d}" for plus in ("", "+") for d in range(10)],
            "sip_public_address": "sip.example.com",
            "twilio_base_url": twilio.url,
            "webhook_allow_private": True,
            "streams_max_sessions": 10_000,
        }
        async with Stack(StackOptions(worker=0, streams=1, values=values)) as stack:
            beating = asyncio.create_task(beat(stack))
            yield stack
            beating.cancel()
            await asyncio.wait({beating})


async def beat(stack: Stack) -> None:
    """Have places for all calls, and no agents. Nobody comes to the calls, so they need none, and
    an agent is a process."""
    settings = stack.settings
    assert settings.livekit_api_secret is not None
    tokens = TokenIssuer(settings.livekit_api_secret.get_secret_value())
    places = Heartbeat(
        worker_id="nobody",
        agent_name=settings.agent_name,
        dispatch_name=dispatch_name(settings.agent_name, "nobody"),
        capacity=10_000,
        active=0,
    )
    async with aiohttp.ClientSession() as http:
        gateway = WorkersGateway(http, stack.gateway_url)
        while True:
            await gateway.heartbeat(tokens.for_worker(places.worker_id), places)
            await asyncio.sleep(1)


async def listening(_request: web.Request) -> web.Response:
    return web.json_response({"text": "Hello."})


@pytest_asyncio.fixture(loop_scope="session")
async def webhook() -> AsyncIterator[str]:
    """The URL that replaces those of the fuzzer's webhooks."""
    app = web.Application()
    app.router.add_post("/", listening)
    async with served(app) as edge:
        yield f"http://127.0.0.1:{edge.port}/"


async def furnish(gateway: Gateway, livekit: LiveKitAPI, webhook: str) -> dict[str, list[str]]:
    """Create resources for the requests to find; return their ids, by dictionary name."""

    async def made(path: str, **body: Any) -> Any:
        answer = await gateway.post(path, json=body)
        assert answer.status in {200, 201}, answer.body
        return answer.body

    agents = [
        (await made("/v1/agents", name=f"Agent {n}", voiceMode="hosted"))["id"]
        for n in range(OF_EACH)
    ]
    await made("/v1/webhooks", url=webhook)
    for agent_id in agents[:2]:
        await made(f"/v1/agents/{agent_id}/webhook", url=webhook)
    secret = {"accountSid": ACCOUNT, "authToken": TOKEN}
    await made("/api/v1/credentials", name="twilio", provider="twilio", **secret)
    credentials = ["twilio"]
    for n in range(OF_EACH):
        trunk = {"name": f"trunk-{n}", "provider": "sip", "address": "127.0.0.1:9"}
        credentials.append((await made("/api/v1/credentials", **trunk))["data"]["id"])
    numbers = []
    for n in range(OF_EACH):
        number = {"provider": "sip", "phoneNumber": f"+1510555{n:04d}", "agentId": agents[0]}
        attached = await made("/api/v1/phone-numbers/attach", **number)
        numbers.append(attached["data"]["id"])
    calls = []
    for _ in range(2):
        calls.append((await made("/v1/calls/web", agentId=agents[0]))["callId"])
        await made(f"/v1/calls/{calls[-1]}/end")
    owner = json.dumps({"auth_id": "acme"})
    await livekit.room.create_room(
        CreateRoomRequest(name="lobby", metadata=owner, empty_timeout=DEADLINE_S)
    )
    return {
        "agents": agents,
        "calls": calls,
        "credentials": credentials,
        "numbers": numbers,
        "rooms": ["lobby"],
    }


_NO_AGENT = "no agent joined the call"


async def explore(folder: Path, url: str) -> tuple[int, str]:
    """Run schemathesis with the configuration in ``folder``; return exit code and output."""
    command = [str(Path(sys.executable).with_name("schemathesis"))]
    command += ["--config-file", str(folder / "schemathesis.toml"), "--no-color"]
    command += ["run", f"{url}/openapi.json", "--report-json-path", str(folder / "report.json")]
    environment = inherited_environment(without=list(Settings.model_fields))
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**environment, "TOKEN": SECRETS["acme"], "SCHEMATHESIS_HOOKS": str(HOOKS)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_every_answer_is_a_documented_one_and_none_is_a_server_error(
    stack: Stack, webhook: str, tmp_path: Path
) -> None:
    async with aiohttp.ClientSession(stack.gateway_url) as session, stack.api() as livekit:
        for name, ids in (await furnish(Gateway(session), livekit, webhook)).items():
            (tmp_path / f"{name}.dict").write_text("".join(f'"{id_}"\n' for id_ in ids))
    (tmp_path / "webhook.txt").write_text(webhook)
    shutil.copy(Path(__file__).with_name("schemathesis.toml"), tmp_path)
    status, output = await explore(tmp_path, stack.gateway_url)
    assert status == 0, output
    report = json.loads((tmp_path / "report.json").read_text())
    operations = report["operations"]
    assert operations["tested"] == operations["selected"] == operations["total"] > 50, operations
    lines = stack.log_text("gateway").splitlines()
    errors = [line for line in lines if '"level": "error"' in line and _NO_AGENT not in line]
    assert errors == []
