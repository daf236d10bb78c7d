"""An agent's MCP servers: connected during the call, their tools added as soon as they are listed.

A dead, slow or hostile server costs the call only that server's tools. Bytes and requests per call
(worker.tools.mcp_transport), the number of tools and the length of a result are limited. Requests
go only where core.url_guard allows; the mcp package follows redirects within one origin only.

Importing the mcp package takes most of a second; worker.preload does it once for all calls.
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
from core.url_guard import OpenSession
from worker.tools.box import ToolBox
from worker.tools.http import MAX_RESPONSE_BYTES, ToolAnswer
from worker.tools.mcp_transport import GuardedTransport

log = logging.getLogger(__name__)

MAX_TOOLS = 50
"""The most tools of one server; an LLM cannot choose well among more."""
MAX_DESCRIPTION = 1024
IDEMPOTENCY_KEY = "switchroom/idempotency-key"
"""In ``_meta`` of a call of a tool, where every version of the protocol allows other keys."""
CLOSE_WITHIN_S = 2.0
# The time-out of a server's idle streams; each request has its own.
_READ_S = 300.0
# The tool names that LLMs accept.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

Offer = Callable[[list[llm.Tool | llm.Toolset]], Awaitable[None]]


class McpServers:
    """One call's MCP servers. ``start`` them when the agent is known; ``aclose`` after the call.

    ``offer`` gives tools to the agent, which keeps its own tool where names are equal.
    """

    def __init__(
        self, servers: Sequence[McpServer], box: ToolBox, offer: Offer, open_http: OpenSession
    ) -> None:
        self._servers = servers
        self._box = box
        self._offer = offer
        self._open_http = open_http
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        for config in self._servers:
            task = asyncio.create_task(self._serve(config), name="mcp server")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Close the sessions, in bounded time."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_WITHIN_S)
            for task in late:
                # Closing the session takes too long, so cancel that, too.
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=CLOSE_WITHIN_S)

    async def _serve(self, config: McpServer) -> None:
        """Offer a server's tools, and keep the session until cancelled or the server fails."""
        name, timeout_s = urlsplit(config.url).hostname or "", config.timeout_ms / 1000
        async with self._open_http() as http:
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
            except Exception as error:  # a third party's server may make the library raise anything
                problem = transport.problem or "it does not speak the protocol"
                log.info("mcp server failed", extra={"error": type(error).__name__})
            self._box.post("mcp.failed", {"server": name, "message": problem})

    def _tool(
        self, schema: dict[str, Any], session: ClientSession, config: McpServer
    ) -> llm.Tool | llm.Toolset:
        async def call(arguments: dict[str, Any], key: str) -> ToolAnswer:
            meta: Any = {IDEMPOTENCY_KEY: key}
            try:
                async with asyncio.timeout(config.timeout_ms / 1000):
                    result = await session.call_tool(schema["name"], arguments, meta=meta)
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
        """Skip validation: a pattern in a stranger's schema could block this process for ever."""


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
    """Return the schemas in the form that LLMs accept, without tools that they cannot use."""
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
        # The tool's error message is meant for the LLM, which may correct its arguments.
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
