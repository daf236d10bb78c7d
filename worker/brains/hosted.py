"""The brain of a hosted agent: an LLM with the agent's prompt and tools."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from livekit.agents import AgentSession, llm
from openai import AsyncClient

from core.models import AgentConfig
from core.recovery import Recovered
from core.url_guard import OpenSession
from worker.tools.box import ToolBox
from worker.voice.earlier.history import history
from worker.voice.providers import build_llm
from worker.voice.turn_agent import TurnAgent

if TYPE_CHECKING:
    from worker.tools.mcp import McpServers


_MOST_TOOLS = 128
"""OpenAI refuses a request with more tools."""


class HostedBrain:
    """Uses livekit-agents' default LLM node. A worker.voice.brain.Brain."""

    guesses = True

    def __init__(
        self,
        config: AgentConfig,
        client: AsyncClient,
        box: ToolBox,
        *,
        open_http: OpenSession,
        so_far: Recovered | None = None,
    ) -> None:
        transfer = config.transfer_number is not None
        tools = box.tools(config.custom_tools, transfer=transfer)
        self.agent = TurnAgent(
            instructions=config.system_prompt, tools=tools, chat_ctx=history(so_far)
        )
        self.llm = build_llm(config, client, box.post)
        self._adding = asyncio.Lock()
        self._mcp: McpServers | None = None
        if config.mcp_servers:
            # Imported here, as it takes most of a second; job processes have it already.
            from worker.tools.mcp import McpServers

            self._mcp = McpServers(config.mcp_servers, box, self._add_tools, open_http)

    def attach(self, session: AgentSession[None]) -> None:
        """Start connecting to MCP servers; the call does not wait for their tools."""
        if self._mcp is not None:
            self._mcp.start()

    async def warm(self) -> None:
        """Do nothing: the LLM's plugin connects when the session starts."""

    async def aclose(self) -> None:
        """Close the MCP servers. The LLM's client belongs to the process."""
        if self._mcp is not None:
            await self._mcp.aclose()

    async def _add_tools(self, tools: list[llm.Tool | llm.Toolset]) -> None:
        """Add tools that were listed later. Of several with one name, the first is kept."""
        async with self._adding:
            known = {tool.id for tool in self.agent.tools}
            new = [tool for tool in tools if tool.id not in known]
            await self.agent.update_tools([*self.agent.tools, *new][:_MOST_TOOLS])
