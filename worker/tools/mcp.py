"""An agent's MCP servers: connected beside the call, their tools handed over when they are there.

A server that is dead, slow or hostile costs the call nothing but that server's tools. What it
says is bounded: so many bytes and requests in a call (worker.tools.mcp_transport), so many tools,
so long a result. Requests lead where core.url_guard lets them; the mcp package follows redirects
within one origin only.

To import the mcp package takes most of a second; worker.preload does it once for all calls.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
from livekit.agents import llm
from mcp import ClientSession, MCPError, types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from core.models import McpServer
from core.tools import schema as tool_schema
from core.url_guard import guarded_session
from worker.tools.box import ToolBox
from worker.tools.http import MAX_RESPONSE_BYTES, ToolAnswer
from worker.tools.mcp_transport import GuardedTransport

log = logging.getLogger(__name__)

MAX_TOOLS = 50
"""Of one server; more would be more than a model can choose from."""
MAX_DESCRIPTION = 1024
CLOSE_WITHIN_S = 2.0
# Idle streams of a server's own; a request has its own time-out.
_READ_S = 300.0
# What models take for a name.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

Offer = Callable[[list[llm.Tool | llm.Toolset]], Awaitable[None]]


class McpServers:
    """``start`` when the agent is known; ``aclose`` when the call is over.

    ``offer`` gives tools to the agent; tools that it has already win there.
    """

    def __init__(
        self, servers: Sequence[McpServer], box: ToolBox, offer: Offer, *, allow_private: bool
    ) -> None:
        self._servers = servers
        self._box = box
        self._offer = offer
        self._allow_private = allow_private
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        for config in self._servers:
            task = asyncio.create_task(self._serve(config), name="mcp server")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Say goodbye to the servers, as far as they let us."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_WITHIN_S)
            for task in late:
                # What it does to be closed takes too long: break that off, too.
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=CLOSE_WITHIN_S)

    async def _serve(self, config: McpServer) -> None:
        """Until cancelled, or the server is no more."""
        name, timeout_s = urlsplit(config.url).hostname or "", config.timeout_ms / 1000
        async with guarded_session(allow_private=self._allow_private) as http:
            transport = GuardedTransport(http)
            problem: str | None = None
            try:
                async with asyncio.timeout(timeout_s) as deadline:
                    async with _session(config, transport) as session:
                        await session.initialize()
                        listed = (await session.list_tools()).tools
                        found = await asyncio.to_thread(_usable, listed, config.allowed_tools)
                        deadline.reschedule(None)
                        await self._offer([self._tool(each, session, config) for each in found])
                        names = [each["name"] for each in found]
                        self._box.post("mcp.ready", {"server": name, "tools": names})
                        await asyncio.Event().wait()
            except TimeoutError:
                problem = "it did not answer in time"
            except Exception as error:  # whatever a stranger's server makes the library raise
                problem = transport.problem or "it does not speak the protocol"
                log.info("mcp server failed", extra={"error": type(error).__name__})
            self._box.post("mcp.failed", {"server": name, "message": problem})

    def _tool(
        self, schema: dict[str, Any], session: ClientSession, config: McpServer
    ) -> llm.Tool | llm.Toolset:
        async def call(arguments: dict[str, Any]) -> ToolAnswer:
            try:
                async with asyncio.timeout(config.timeout_ms / 1000):
                    result = await session.call_tool(schema["name"], arguments)
            except TimeoutError:
                return ToolAnswer(False, "Error: the tool did not answer in time.")
            except Exception as error:
                log.warning(
                    "tool failed", extra={"tool": schema["name"], "error": type(error).__name__}
                )
                late = isinstance(error, MCPError) and error.error.code == types.REQUEST_TIMEOUT
                words = "did not answer in time" if late else "could not be reached"
                return ToolAnswer(False, f"Error: the tool {words}.")
            return _answer(result)

        return self._box.foreign(schema, call)


class _Session(ClientSession):
    async def validate_tool_result(self, name: str, result: types.CallToolResult) -> None:
        """Nothing: a pattern in a stranger's schema can keep this process busy for ever."""


@asynccontextmanager
async def _session(config: McpServer, transport: GuardedTransport) -> AsyncIterator[ClientSession]:
    timeout_s = config.timeout_ms / 1000

    def client(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            transport=transport,
            headers=headers,
            timeout=timeout or httpx2.Timeout(timeout_s, read=_READ_S),
            auth=auth,
        )

    async with (
        _streams(config, client) as (receive, send),
        _Session(receive, send, read_timeout_seconds=timeout_s) as session,
    ):
        yield session


def _streams(
    config: McpServer, client: Callable[..., httpx2.AsyncClient]
) -> AbstractAsyncContextManager[Any]:
    if urlsplit(config.url).path.rstrip("/").endswith("/sse"):
        return sse_client(
            config.url,
            headers=config.headers,
            timeout=config.timeout_ms / 1000,
            sse_read_timeout=_READ_S,
            httpx_client_factory=client,
        )

    @asynccontextmanager
    async def streamable() -> AsyncIterator[Any]:
        async with (
            client(config.headers) as http,
            streamable_http_client(config.url, http_client=http) as streams,
        ):
            yield streams

    return streamable()


def _usable(listed: Sequence[types.Tool], allowed: Sequence[str] | None) -> list[dict[str, Any]]:
    """As a model takes them; those that no model can be told of are left out."""
    found: dict[str, dict[str, Any]] = {}
    for tool in listed:
        if len(found) == MAX_TOOLS:
            break
        if not _NAME.fullmatch(tool.name) or (allowed is not None and tool.name not in allowed):
            continue
        try:
            parameters = tool_schema.for_models(tool.input_schema)
            tool_schema.check(parameters)
        except ValueError as error:
            facts = {"tool": tool.name, "problem": str(error)}
            log.info("a tool of an mcp server is left out", extra=facts)
            continue
        description = (tool.description or tool.title or tool.name)[:MAX_DESCRIPTION]
        found.setdefault(
            tool.name, {"name": tool.name, "description": description, "parameters": parameters}
        )
    return list(found.values())


def _answer(result: types.CallToolResult) -> ToolAnswer:
    texts = [_text(block) for block in result.content]
    if not texts and result.structured_content is not None:
        texts = [json.dumps(result.structured_content)]
    text = "\n".join(texts)
    if len(text.encode(errors="replace")) > MAX_RESPONSE_BYTES:
        return ToolAnswer(False, "Error: the tool's answer is too long.")
    if result.is_error:
        # The tool's own words, meant for the model to do better.
        return ToolAnswer(False, f"Error: {text or 'the tool failed'}")
    return ToolAnswer(True, text or "Done.")


def _text(block: types.ContentBlock) -> str:
    match block:
        case types.TextContent(text=text):
            return text
        case types.EmbeddedResource(resource=types.TextResourceContents(text=text)):
            return text
        case _:
            return f"[{block.type}]"
