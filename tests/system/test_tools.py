"""An agent's tools on a call, from the API to the phone: execution messages, MCP, secrets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from dev import scenario
from dev.phone import Phone
from dev.providers import Control, Deepgram, OpenAI, Rule, Script, ToolCall
from dev.scenario import OPENING, TABLE
from dev.speech import Recognizer, normalize
from dev.stack import Stack
from tests.conftest import ACME, GREETING, Gateway
from tests.support.calls import Placed, request, told
from tests.support.edge import served
from tests.support.mcp_server import mcp_server

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

MEANWHILE = "Let me look into the book."
TABLE_ANSWER = "Yes, a table is free."
STOCK_ANSWER = "Three apples are left."
SECRET = "Bearer s3cret-of-the-book"


class Book:
    """A tool that answers once ``go_on`` is set."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.headers: list[Any] = []
        self.over = asyncio.Event()

    async def check(self, request: web.Request) -> web.Response:
        self.headers.append(request.headers)
        self.asked.set()
        await self.go_on.wait()
        return web.json_response({"free": (await request.json())["people"] == 4})

    async def hang(self, _request: web.Request) -> web.Response:
        await self.over.wait()
        return web.Response()


@pytest_asyncio.fixture(loop_scope="session")
async def script(stack: Stack) -> AsyncIterator[None]:
    rules = [
        Rule(equals=TABLE, call=ToolCall(name="check_table", arguments={"people": 4})),
        Rule(role="tool", tool_name="check_table", keywords=["true"], reply=TABLE_ANSWER),
        Rule(equals=OPENING, call=ToolCall(name="find_item", arguments={"name": "apples"})),
        Rule(role="tool", tool_name="find_item", keywords=["apples 3"], reply=STOCK_ANSWER),
    ]
    control = Control(
        deepgram=Deepgram(phrases=[TABLE, OPENING]),
        openai=OpenAI(scripts={"default": Script(rules=rules)}),
    )
    await stack.set_providers(control)
    yield
    await stack.set_providers(scenario.control())


async def test_words_meanwhile_an_mcp_tool_and_no_secret_told(
    stack: Stack, gateway: Gateway, phone: Phone, script: None
) -> None:
    book = Book()
    app = web.Application()
    app.router.add_post("/", book.check)
    app.router.add_post("/mcp", book.hang)
    async with served(app) as edge, mcp_server() as shop:
        agent = await gateway.post(
            "/v1/agents",
            json={
                "name": "Waiter",
                "voiceMode": "hosted",
                "beginMessage": GREETING,
                "customTools": [
                    {
                        "name": "check_table",
                        "description": "Whether a table is free.",
                        "url": f"http://127.0.0.1:{edge.port}/",
                        "headers": {"Authorization": SECRET},
                        "parameters": {"properties": {"people": {"type": "integer"}}},
                        "timeoutMs": 60_000,
                        "speakDuringExecution": True,
                        "executionMessage": MEANWHILE,
                    }
                ],
                "mcpServers": [
                    {"url": shop.url, "headers": {"Authorization": SECRET}},
                    {"url": "http://127.0.0.1:9/mcp"},
                    {"url": f"http://127.0.0.1:{edge.port}/mcp", "timeoutMs": 120_000},
                ],
            },
        )
        assert agent.status == 200, agent.body
        placed = await Placed.place(gateway, request(phone.address, agent=agent.body["id"]))
        call = await phone.next_call(10)
        await call.answered(10)
        await call.listen(30)
        for event in ("mcp.ready", "mcp.failed"):
            await told(gateway, placed.call_id, event)

        # The tool answers once the caller has heard the execution message.
        asked = await call.say(TABLE)
        meanwhile = await call.listen(30)
        assert book.asked.is_set()
        answered_ms = call.now_ms()
        book.go_on.set()
        answer = await call.listen(30)
        assert asked.end_ms < meanwhile.start_ms < meanwhile.end_ms < answered_ms < answer.start_ms
        ear = Recognizer([MEANWHILE, TABLE_ANSWER, STOCK_ANSWER])
        heard = [
            await asyncio.to_thread(ear.recognize, each.pcm, 8000) for each in (meanwhile, answer)
        ]
        assert [normalize(each.text) for each in heard] == [
            normalize(MEANWHILE),
            normalize(TABLE_ANSWER),
        ]

        await call.say(OPENING)
        stock = await call.listen(30)
        assert normalize((await asyncio.to_thread(ear.recognize, stock.pcm, 8000)).text) == (
            normalize(STOCK_ANSWER)
        )
        await call.hangup()
        record = await placed.record()
        book.over.set()

    turns = [(turn["transcript"], turn["response"]) for turn in record["transcripts"]]
    assert [normalize(response) for _, response in turns] == [
        normalize(text) for text in (GREETING, f"{MEANWHILE} {TABLE_ANSWER}", STOCK_ANSWER)
    ]
    assert shop.done == ["apples"]
    assert [headers["Authorization"] for headers in book.headers] == [SECRET]
    assert {each["authorization"] for each in shop.headers} == {SECRET}
    url = f"/v1/calls/{placed.call_id}/events"
    async with gateway.session.get(url, headers=ACME) as response:
        timeline = await response.text()
    for name in ("check_table", "find_item"):
        assert f'"name": "{name}"' in timeline
    written = [timeline, *map(stack.log_text, stack.components)]
    assert not any("s3cret-of-the-book" in text for text in written)
