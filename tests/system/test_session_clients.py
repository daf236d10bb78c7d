"""Sessions seen by clients: the page /try/{agentId}, which loses its network, and the examples."""

from __future__ import annotations

import asyncio
import re
import sys
import wave
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from dev import scenario
from dev.scenario import OPENING, OPENING_ANSWER
from dev.speech import CALLER_VOICE, synthesize
from dev.stack import Stack, StackOptions
from dev.stack.options import HOST, ROOT
from dev.stack.ports import PORTS
from dev.standins.balancer import Balancer
from tests.conftest import AUTH, GREETING, SECRETS, Gateway, write_agents
from tests.support.try_page import CHROMIUM, SLOWLY, Visit, open_browser, visiting

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

if CHROMIUM is None:
    pytest.skip("there is no chromium here", allow_module_level=True)

OUTAGE_S = 5
# The page measures what it plays and what the microphone hears.
AGENT_SOUNDS = """document.body.dataset.state === "speaking"
    && parseFloat(document.getElementById("orb").style.getPropertyValue("--loud")) > 0.02"""
MICROPHONE_HEARS = 'document.getElementById("level").value > 0.02'


@pytest.fixture(scope="module")
def site_port() -> Iterator[int]:
    """The port of the site in examples/browser."""
    port = PORTS.take()
    yield port
    PORTS.give_back(port)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(site_port: int, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """No LiveKit server: a session needs the gateway, the stream worker and the providers."""
    agents = tmp_path_factory.mktemp("agents")
    write_agents(agents)
    values = {
        **AUTH,
        "agents_dir": agents,
        "default_agent": "greeter",
        "session_origins": f"http://{HOST}:{site_port}",
    }
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


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@asynccontextmanager
async def example(stack: Stack, *command: str, **env: str) -> AsyncIterator[Process]:
    """Run one of the examples as a program of its own; kill it afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        cwd=ROOT / "examples",
        env={
            "SWITCHROOM_URL": stack.gateway_url,
            "SWITCHROOM_TOKEN": SECRETS["acme"],
            "PYTHONUNBUFFERED": "1",
            **env,
        },
        stdout=PIPE,
        stderr=STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(page: Page, expression: str) -> None:
    """Wait for it to be true. ``page.wait_for_function`` would need what the page's policy bans."""
    async with asyncio.timeout(SLOWLY / 1000):
        while not await page.evaluate(expression):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_network_that_fails_for_five_seconds(
    browser: Browser, network: Balancer, stack: Stack
) -> None:
    address = f"{network.url}/try/greeter?via=socket"
    async with visiting(browser, address) as visit:
        await lose_the_network(visit, network)
    async with aiohttp.ClientSession(stack.gateway_url) as http:
        gateway = Gateway(http)
        newest = (await gateway.get("/v1/calls?direction=web&limit=1")).body["data"][0]
        record = (await gateway.get(f"/v1/calls/{newest['id']}?wait=true&timeout=20")).body
    assert (record["type"], record["direction"]) == ("stream", "web")
    assert (record["status"], record["disconnectionReason"]) == ("completed", "user_hangup")
    said = [(turn["transcript"], turn["response"]) for turn in record["transcripts"]]
    assert said == [("", GREETING), (OPENING, OPENING_ANSWER), (OPENING, OPENING_ANSWER)]


async def lose_the_network(visit: Visit, network: Balancer) -> None:
    page = visit.page
    await page.goto(f"{visit.address}#token={SECRETS['acme']}")
    await expect(page).to_have_url(visit.address)
    await expect(page.get_by_label("WebSocket")).to_be_checked()
    await visit.start()
    await until(page, AGENT_SOUNDS)
    await visit.hear("Agent", GREETING)
    await until(page, MICROPHONE_HEARS)
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


async def test_the_example_for_a_site(browser: Browser, site_port: int, stack: Stack) -> None:
    env = {"AGENT_ID": "greeter", "PORT": str(site_port)}
    async with example(stack, "browser/server.py", **env) as site:
        assert site.stdout is not None
        await asyncio.wait_for(site.stdout.readuntil(b"Running on"), 20)
        async with visiting(browser, f"http://{HOST}:{site_port}/") as visit:
            await visit.page.goto(visit.address)
            await visit.page.get_by_role("button", name="Call the agent").click()
            await expect(visit.page.get_by_text(f"agent: {GREETING}")).to_be_visible(timeout=SLOWLY)
            await visit.page.get_by_role("button", name="Hang up").click()
            await expect(visit.page.get_by_text("ended: user_hangup")).to_be_visible()


async def test_the_example_in_python(stack: Stack, tmp_path: Path) -> None:
    question, answer = tmp_path / "question.wav", tmp_path / "answer.wav"
    speech = synthesize(OPENING, CALLER_VOICE, 16_000).pcm
    with wave.open(str(question), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.concatenate([np.zeros(16_000 * 4, np.int16), speech]).tobytes())
    paths = str(question), str(answer)
    async with example(stack, "socket_client.py", "greeter", *paths) as client:
        assert client.stdout is not None
        output = (await asyncio.wait_for(client.stdout.read(), 60)).decode()
        assert await client.wait() == 0, output
    for text in (GREETING, OPENING, OPENING_ANSWER, "'reason': 'user_hangup'"):
        assert text in output
    with wave.open(str(answer)) as file:
        heard = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    assert len(heard) > 2 * 16_000 and np.abs(heard).max() > 3_000
