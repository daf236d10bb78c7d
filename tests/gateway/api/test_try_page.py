"""GET /try/{agentId} in a real browser, over WebRTC."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from dev.scenario import OPENING, OPENING_ANSWER
from dev.stack import Stack
from gateway.api.try_page import LIVEKIT_CLIENT
from tests.conftest import GREETING, SECRETS, Gateway
from tests.support.try_page import CHROMIUM, SLOWLY, Visit, open_browser, visiting

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

if CHROMIUM is None:
    pytest.skip("there is no chromium here", allow_module_level=True)
if not LIVEKIT_CLIENT.is_file():
    pytest.skip("livekit-client is not installed (npm ci)", allow_module_level=True)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser, stack: Stack) -> AsyncIterator[Visit]:
    async with visiting(browser, f"{stack.gateway_url}/try/greeter") as visit:
        yield visit


async def last_call(gateway: Gateway) -> dict[str, Any]:
    """Return the record of the newest web call, once it has ended."""
    newest = (await gateway.get("/v1/calls?direction=web&limit=1")).body["data"][0]
    return dict((await gateway.get(f"/v1/calls/{newest['id']}?wait=true&timeout=20")).body)


async def test_a_conversation(visit: Visit, gateway: Gateway) -> None:
    page = visit.page
    await page.goto(visit.address)
    await expect(page.get_by_role("heading", name="greeter")).to_be_visible()
    await visit.start()
    await visit.complains("asks for an API token")
    await page.get_by_label("API token").fill("not-the-right-token")
    await visit.start()
    await visit.complains("not valid")
    await page.get_by_label("API token").fill(SECRETS["acme"])
    await page.get_by_label("API token").press("Enter")

    await visit.says(re.compile("Listening|Speaking"), SLOWLY)
    await expect(page.get_by_label("API token")).to_be_hidden()
    await expect(page.get_by_role("heading", name="Greeter")).to_be_visible()
    await visit.hear("Agent", GREETING.split()[0])
    await visit.hear("You", OPENING)
    await visit.hear("Agent", OPENING_ANSWER)
    await visit.says("Listening")  # its last word is written before it is spoken
    await page.get_by_role("button", name="Hang up").click()
    await visit.says("Call ended")
    await expect(page.locator("#hint")).to_have_text(
        re.compile(r"You hung up\. The call lasted \d:\d\d\."), timeout=SLOWLY
    )

    record = await last_call(gateway)
    assert (record["status"], record["disconnectionReason"]) == ("completed", "user_hangup")
    assert record["agentId"] == "greeter"
    said = [(turn["transcript"], turn["response"]) for turn in record["transcripts"]]
    # On a busy machine the question may come during the greeting.
    assert said[0][0] == "" and GREETING.startswith(said[0][1])
    assert (OPENING, OPENING_ANSWER) in said
    await expect(page.get_by_role("button", name="Call again")).to_be_focused()


async def test_the_agents_side_hangs_up(visit: Visit, gateway: Gateway) -> None:
    await visit.page.goto(f"{visit.address}#token={SECRETS['acme']}")
    # Neither the address bar nor the history keeps the token.
    await expect(visit.page).to_have_url(visit.address)
    await visit.start()
    await visit.hear("Agent", GREETING.split()[0])
    call = (await gateway.get("/v1/calls?direction=web&limit=1")).body["data"][0]
    assert (await gateway.post(f"/v1/calls/{call['id']}/end")).status == 200
    await visit.says("Call ended")
    await expect(visit.page.locator("#hint")).to_contain_text("The agent hung up.")
    await expect(visit.page.get_by_role("button", name="Hang up")).to_be_hidden()


async def test_a_call_hung_up_before_the_agent_came(visit: Visit, gateway: Gateway) -> None:
    await visit.page.goto(f"{visit.address}#token={SECRETS['acme']}")
    await visit.start()
    await visit.page.get_by_role("button", name="Hang up").click()
    await visit.says("Call ended")
    record = await last_call(gateway)
    assert record["status"] in {"canceled", "completed"}, record


async def test_an_agent_that_is_not_there(visit: Visit) -> None:
    address = visit.address.replace("greeter", "nobody")
    await visit.page.goto(f"{address}#token={SECRETS['acme']}")
    await visit.start()
    await visit.complains("There is no agent “nobody”.")
    await visit.says("Ready")


async def test_a_microphone_that_is_blocked(visit: Visit) -> None:
    await visit.context.clear_permissions()
    await visit.page.goto(visit.address)
    await visit.start()
    await visit.complains("The microphone is blocked")
    await visit.says("Ready")


async def test_without_livekits_library_it_says_what_to_do(visit: Visit) -> None:
    await visit.page.route("**/livekit-client.js", lambda route: route.fulfill(status=404))
    await visit.page.goto(visit.address)
    await visit.complains("npm ci")
    start = visit.page.get_by_role("button", name="Start the call")
    await expect(start).to_be_disabled()
    await visit.page.get_by_label("WebSocket").check()
    await expect(start).to_be_enabled()
    await expect(visit.page.get_by_role("alert")).to_be_hidden()
