"""What answers a caller's turns: a model that we ask (hosted), or the tenant's webhook.

A conversation runs ``agent`` in a session that has ``llm``; all else (hearing, speaking, turn
taking, barge-in) is the same for both.
"""

from __future__ import annotations

from typing import Any, Protocol

from livekit.agents import Agent, AgentSession, llm
from openai import AsyncClient

from core.models import AgentConfig
from worker import pipeline


class Brain(Protocol):
    """One call's; ``aclose`` it after the session."""

    @property
    def agent(self) -> Agent:
        """What the session runs."""

    @property
    def llm(self) -> llm.LLM[Any]:
        """What the session has to have, or it answers nobody."""

    @property
    def guesses(self) -> bool:
        """Whether an answer may be begun before it is known that the turn is over."""

    def attach(self, session: AgentSession[None]) -> None:
        """Before the session starts."""

    async def warm(self) -> None:
        """Be ready for the first turn; what fails here fails again then, and is told then."""

    async def aclose(self) -> None: ...


class HostedBrain:
    """livekit-agents' own way: a language model with the agent's prompt and tools."""

    guesses = True

    def __init__(
        self,
        config: AgentConfig,
        client: AsyncClient,
        tools: list[llm.Tool | llm.Toolset],
    ) -> None:
        self.agent = Agent(instructions=config.system_prompt, tools=tools)
        self.llm = pipeline.build_llm(config, client)

    def attach(self, session: AgentSession[None]) -> None:
        """It needs to know nothing of it."""

    async def warm(self) -> None:
        """Its plugin does that when the session starts."""

    async def aclose(self) -> None:
        """The client is the process's."""
