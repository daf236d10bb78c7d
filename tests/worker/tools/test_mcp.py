"""An agent's MCP servers: real ones, and dead, slow or hostile ones."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from livekit.agents import llm
from mcp import types

from core.models import McpServer
from core.url_guard import guarded_session
from tests.support.edge import served
from tests.support.mcp_server import mcp_server
from tests.worker.privacy.masked import Masked
from tests.worker.tools.test_box import context
from worker.privacy.secrets import Secrets
from worker.tools import mcp
from worker.tools.actions import Actions, no_transfer
from worker.tools.box import ToolBox
from worker.tools.digits import Keypad
from worker.tools.mcp import IDEMPOTENCY_KEY, McpServers, _usable
from worker.tools.runs import Runs

pytestmark = pytest.mark.unit

SECRET = "Bearer s3cret"
TOOLS = ["find_item", "several", "broken", "long", "slow", "end_call"]


class Agent:
    """An agent: the tools that it is offered, and the events on its timeline."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.tools: dict[str, Any] = {}
        self.first_id = ""
        self._told = asyncio.Condition()
        self._telling: set[asyncio.Task[None]] = set()
        secrets = Secrets()
        self.box = ToolBox(
            runs=Runs("call_1", secrets),
            secrets=secrets,
            http=cast(aiohttp.ClientSession, None),
            post=self.post,
            actions=Actions(
                tone=cast(Any, None),
                post=self.post,
                hang_up=lambda: None,
                transfer=no_transfer,
                recording=Masked().control,
            ),
            keypad=Keypad(lambda digits: None),
        )

    def post(self, type: str, data: dict[str, Any]) -> None:
        self.events.append((type, data))
        task = asyncio.ensure_future(self._tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self) -> None:
        async with self._told:
            self._told.notify_all()

    async def offer(self, tools: list[llm.Tool | llm.Toolset]) -> None:
        self.tools |= {tool.id: tool for tool in tools}

    async def until(self, type: str, count: int = 1) -> dict[str, Any]:
        """Wait for ``count`` events of the type; return the data of the last one."""
        async with asyncio.timeout(30), self._told:
            await self._told.wait_for(lambda: len(self.of(type)) >= count)
        return self.of(type)[-1]

    def of(self, type: str) -> list[dict[str, Any]]:
        return [data for kind, data in self.events if kind == type]

    async def use(self, tool: str, /, **arguments: Any) -> str:
        it = context()
        self.first_id = self.first_id or it.function_call.call_id
        return str(await self.tools[tool](raw_arguments=arguments, context=it))


@asynccontextmanager
async def connected(*configs: McpServer, allow_private: bool = True) -> AsyncIterator[Agent]:
    agent = Agent()
    open_http = partial(guarded_session, allow_private=allow_private)
    servers = McpServers(configs, agent.box, agent.offer, open_http)
    servers.start()
    try:
        yield agent
    finally:
        async with asyncio.timeout(20):
            await servers.aclose()


@pytest.mark.parametrize("sse", [False, True])
async def test_its_tools_are_the_agents(sse: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with mcp_server(sse=sse) as server:
        config = McpServer(url=server.url, headers={"Authorization": SECRET})
        async with connected(config) as agent:
            ready = await agent.until("mcp.ready")
            assert ready == {"server": "127.0.0.1", "tools": TOOLS}
            assert await agent.use("find_item", name="apples") == "apples: 3 in stock"
            assert await agent.use("several") == "one\n[image]"
            failed = await agent.use("broken")
            assert failed.startswith("Error: ") and "the shelf is empty" in failed
            assert await agent.use("long") == "Error: the tool's answer is too long."
            assert (await agent.use("find_item")).startswith("Error: ")
        assert server.done == ["apples"]
        assert [meta[IDEMPOTENCY_KEY] for meta in server.metas] == [f"call_1:{agent.first_id}"]
        assert {each.get("authorization") for each in server.headers} == {SECRET}
    called = [(data["name"], data["ok"]) for data in agent.of("tool.called")]
    assert called == [
        ("find_item", True),
        ("several", True),
        ("broken", False),
        ("long", False),
        ("find_item", False),
    ]
    schema = agent.tools["find_item"].info.raw_schema
    assert schema["description"] == "Whether an item is in stock."
    assert schema["parameters"]["required"] == ["name"]
    own = [record for record in caplog.records if not record.name.startswith(("mcp.server", "uvi"))]
    assert "s3cret" not in str([vars(record) for record in own]) + str(agent.events)


async def test_schemas_that_models_refuse_are_changed_or_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    person = {"type": "object", "properties": {"name": {"type": "string"}}}
    schemas: dict[str, dict[str, Any]] = {
        "named": {"$ref": "#/definitions/Person", "definitions": {"Person": person}},
        "either": {**person, "anyOf": [{"required": ["name"]}]},
        "nowhere": {"$ref": "#/definitions/Nobody"},
        "elsewhere": {"$ref": "http://127.0.0.1:9/"},
    }
    listed = [types.Tool(name=name, input_schema=schemas[name]) for name in schemas]
    with caplog.at_level("INFO", "worker.tools.mcp"):
        found = {each["name"]: each["parameters"] for each in _usable(listed, None)}
    definitions = schemas["named"]["definitions"]
    assert found == {"named": {**person, "definitions": definitions}, "either": person}
    left_out = [(vars(record)["tool"], vars(record)["problem"]) for record in caplog.records]
    assert left_out == [(name, "a $ref leads nowhere") for name in ("nowhere", "elsewhere")]


async def test_only_those_that_are_allowed() -> None:
    async with mcp_server() as server:
        some = McpServer(url=server.url, allowed_tools=["find_item", "nothing"])
        none = McpServer(url=server.url, allowed_tools=[])
        async with connected(some, none) as agent:
            await agent.until("mcp.ready", 2)
            assert list(agent.tools) == ["find_item"]


async def test_a_slow_tool_is_not_waited_for() -> None:
    async with mcp_server() as server:
        async with connected(McpServer(url=server.url, timeout_ms=2000)) as agent:
            await agent.until("mcp.ready")
            assert await agent.use("slow") == "Error: the tool did not answer in time."
            assert await agent.use("find_item", name="a") == "a: 3 in stock"


async def test_a_server_that_dies_leaves_its_tools_with_an_error() -> None:
    async with mcp_server() as server:
        async with connected(McpServer(url=server.url, timeout_ms=5000)) as agent:
            await agent.until("mcp.ready")
            await agent.use("find_item", name="a")
            await server.stop()
            assert await agent.use("find_item", name="a") == (
                "Error: the tool could not be reached."
            )


async def test_a_private_address_is_not_asked() -> None:
    async with mcp_server() as server:
        async with connected(McpServer(url=server.url), allow_private=False) as agent:
            failed = await agent.until("mcp.failed")
        assert failed == {"server": "127.0.0.1", "message": "its address is not public"}
        assert server.headers == []


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def refusing(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=401, text="the key s3cret is wrong")


async def hanging(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def no_mcp(_request: web.Request) -> web.StreamResponse:
    return web.json_response({"hello": "world"})


async def a_page(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>", content_type="text/html")


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def endless_events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(b"data: " + b"x" * 65536)


async def bomb(_request: web.Request) -> web.StreamResponse:
    body = gzip.compress(b" " * 50_000_000)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    return web.Response(body=body, headers=headers)


async def moved(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("http://127.0.0.1:9/mcp")


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    app = web.Application(client_max_size=2**20)
    app.router.add_route("*", "/{path:.*}", handler)
    async with served(app) as edge:
        yield f"http://127.0.0.1:{edge.port}"


@pytest.mark.parametrize("path", ["/mcp", "/sse"])
@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (refusing, "HTTP 401"),
        (hanging, "it did not answer in time"),
        (no_mcp, "it does not speak the protocol"),
        (a_page, "it does not speak the protocol"),
        (endless, "its answer is too long"),
        (endless_events, None),
        (bomb, "its answer is compressed"),
        (moved, "HTTP 307"),
    ],
)
async def test_a_server_that_is_none_is_on_the_timeline(
    handler: Handler, message: str | None, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(handler) as url:
        timeout_ms = 500 if handler is hanging else 20_000
        config = McpServer(url=url + path, headers={"X-Key": SECRET}, timeout_ms=timeout_ms)
        async with connected(config) as agent:
            failed = await agent.until("mcp.failed")
    assert failed["server"] == "127.0.0.1"
    assert message is None or failed["message"] == message
    assert agent.tools == {}
    assert "s3cret" not in str(agent.events)
    assert SECRET not in str([vars(record) for record in caplog.records])


async def test_nobody_there() -> None:
    async with connected(McpServer(url="http://127.0.0.1:9/mcp")) as agent:
        assert (await agent.until("mcp.failed"))["message"] == "it could not be reached"


async def test_a_redirect_within_the_origin_is_followed_and_no_other() -> None:
    async with mcp_server() as server:
        target = server.url

        async def elsewhere(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(target)

        async with answering(elsewhere) as url:
            config = McpServer(url=f"{url}/mcp", headers={"X-Key": SECRET})
            async with connected(config) as agent:
                assert (await agent.until("mcp.failed"))["message"] == "HTTP 307"
        assert server.headers == []


async def test_what_a_hostile_server_lists_is_bounded() -> None:
    """Names, schemas and patterns may not break a model's request or the process."""
    evil = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    listed: list[dict[str, Any]] = [
        {"name": "x" * 65, "inputSchema": {"type": "object"}},
        {"name": "bad schema", "inputSchema": {"type": "object"}},
        {"name": "no_schema", "inputSchema": {"type": "object", "properties": {"a": {"type": 7}}}},
        {"name": "remote", "inputSchema": {"type": "object", "$ref": "http://127.0.0.1:9/"}},
        {"name": "huge", "inputSchema": {"type": "object", "description": "x" * 20_000}},
        {"name": "evil", "inputSchema": {"type": "object"}, "outputSchema": evil},
        *({"name": f"t{n}", "inputSchema": {"type": "object"}} for n in range(100)),
    ]

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        asked = await request.json()
        results = {
            "initialize": {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "evil", "version": "1"},
            },
            "tools/list": {"tools": listed},
            "tools/call": {
                "content": [{"type": "text", "text": "ok"}],
                "structuredContent": {"a": "a" * 60 + "!"},
            },
        }
        if "id" not in asked:
            return web.Response(status=202)
        if asked["method"] not in results:
            error = {"code": -32601, "message": "no"}
            return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "error": error})
        result = results[asked["method"]]
        return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": result})

    async with answering(handle) as url:
        async with connected(McpServer(url=f"{url}/mcp")) as agent:
            await agent.until("mcp.ready")
            assert list(agent.tools) == ["evil", *(f"t{n}" for n in range(mcp.MAX_TOOLS - 1))]
            assert await agent.use("evil", a="b") == "ok"
