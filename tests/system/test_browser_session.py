"""The page /try/{agentId} over a WebSocket: talks, loses its network, and goes on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import expect

from dev import scenario
from dev.scenario import OPENING, OPENING_ANSWER
from dev.stack import Stack, StackOptions
from dev.stack.ports import PORTS
from tests.conftest import AUTH, GREETING, SECRETS, Gateway, write_agents
from tests.support.balancer import Balancer
from tests.support.try_page import CHROMIUM, SLOWLY, Visit, open_browser, visiting

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

if CHROMIUM is None:
    pytest.skip("there is no chromium here", allow_module_level=True)

OUTAGE_S = 5


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """No LiveKit server: a session needs the gateway, the stream worker and the providers."""
    agents = tmp_path_factory.mktemp("agents")
    write_agents(agents)
    values = {**AUTH, "agents_dir": agents, "default_agent": "greeter"}
    options = StackOptions(livekit=False, bridge=False, worker=0, streams=1, values=values)
    async with Stack(options) as stack:
        await stack.set_providers(scenario.control())
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def network(stack: Stack) -> AsyncIterator[Balancer]:
    """Everything that the browser sends goes through here."""
    port = PORTS.take()
    async with Balancer([stack.settings.gateway_port]).serve(port) as balancer:
        yield balancer
    PORTS.give_back(port)


@pytest_asyncio.fixture(loop_scope="session")
async def visit(network: Balancer, tmp_path: Path) -> AsyncIterator[Visit]:
    async with (
        open_browser(tmp_path) as browser,
        visiting(browser, f"{network.url}/try/greeter?via=socket") as visit,
    ):
        yield visit


async def test_a_network_that_fails_for_five_seconds(
    visit: Visit, network: Balancer, stack: Stack
) -> None:
    page = visit.page
    await page.goto(f"{visit.address}#token={SECRETS['acme']}")
    await expect(page).to_have_url(visit.address)
    await expect(page.get_by_label("WebSocket")).to_be_checked()
    await visit.start()
    await visit.hear("Agent", GREETING)
    await visit.hear("You", OPENING)
    await visit.hear("Agent", OPENING_ANSWER)
    await visit.says("Listening")
    questions = page.get_by_role("listitem").filter(has_text=OPENING)
    asked = await questions.count()

    ports, network.ports = network.ports, []
    network.cut()
    await visit.says("Reconnecting")
    await asyncio.sleep(OUTAGE_S)
    network.ports = ports
    await visit.says(re.compile("Listening|Speaking|Thinking"))

    # The microphone's file repeats: the next question is heard through the second socket.
    await expect(questions).to_have_count(asked + 1, timeout=SLOWLY)
    answers = page.get_by_role("listitem").filter(has_text=OPENING_ANSWER)
    await expect(answers).to_have_count(2, timeout=SLOWLY)
    await expect(page.get_by_role("listitem").filter(has_text=GREETING)).to_have_count(1)
    await page.get_by_role("button", name="Hang up").click()
    await visit.says("Call ended")
    await expect(page.locator("#hint")).to_contain_text("You hung up.", timeout=SLOWLY)

    async with aiohttp.ClientSession(stack.gateway_url) as http:
        gateway = Gateway(http)
        newest = (await gateway.get("/v1/calls?direction=web&limit=1")).body["data"][0]
        record = (await gateway.get(f"/v1/calls/{newest['id']}?wait=true&timeout=20")).body
    assert (record["type"], record["direction"]) == ("stream", "web")
    assert (record["status"], record["disconnectionReason"]) == ("completed", "user_hangup")
    said = [(turn["transcript"], turn["response"]) for turn in record["transcripts"]]
    assert said == [("", GREETING), (OPENING, OPENING_ANSWER), (OPENING, OPENING_ANSWER)]
