"""A real MCP server on loopback, over streamable HTTP or over SSE."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent, TextContent

Scope = MutableMapping[str, Any]


async def _nothing() -> None:
    return None


@dataclass
class Running:
    """``headers``: those of each request, as received. ``done``: what the tools did. ``metas``: the
    ``_meta`` of the uses of find_item."""

    url: str = ""
    headers: list[dict[str, str]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    metas: list[dict[str, Any]] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    stop: Callable[[], Awaitable[None]] = field(default=_nothing)


def _tools(running: Running) -> MCPServer:
    server = MCPServer("Shop")

    @server.tool()
    def find_item(name: str, ctx: Context[Any, Any]) -> str:
        """Whether an item is in stock."""
        running.done.append(name)
        running.metas.append(dict(ctx.request_context.meta or {}))
        return f"{name}: 3 in stock"

    @server.tool()
    def several() -> list[TextContent | ImageContent]:
        return [
            TextContent(type="text", text="one"),
            ImageContent(type="image", data="AAAA", mime_type="image/png"),
        ]

    @server.tool()
    def broken() -> str:
        raise ToolError("the shelf is empty")

    @server.tool()
    def long() -> str:
        return "x" * 70_000

    @server.tool()
    async def slow() -> str:
        await running.go_on.wait()
        return "late"

    @server.tool()
    def end_call() -> str:
        running.done.append("end_call")
        return "never"

    @server.tool(name="not a name")
    def unusable() -> str:
        return "never"

    return server


@asynccontextmanager
async def mcp_server(*, sse: bool = False) -> AsyncIterator[Running]:
    running = Running()
    server = _tools(running)
    app = server.sse_app() if sse else server.streamable_http_app()

    async def noting(
        scope: Scope,
        receive: Callable[[], Awaitable[Scope]],
        send: Callable[[Scope], Awaitable[None]],
    ) -> None:
        if scope["type"] == "http":
            running.headers.append(
                {name.decode(): value.decode() for name, value in scope["headers"]}
            )
        await app(scope, receive, send)

    config = uvicorn.Config(
        noting, port=0, log_config=None, ws="none", timeout_graceful_shutdown=1, lifespan="on"
    )
    serving = uvicorn.Server(config)
    task = asyncio.create_task(serving.serve())

    async def stop() -> None:
        running.go_on.set()
        serving.should_exit = True
        await task

    try:
        async with asyncio.timeout(20):
            while not serving.started:  # noqa: ASYNC110 (it has no event for that)
                await asyncio.sleep(0.01)
        port = serving.servers[0].sockets[0].getsockname()[1]
        running.url = f"http://127.0.0.1:{port}/{'sse' if sse else 'mcp'}"
        running.stop = stop
        yield running
    finally:
        await stop()
