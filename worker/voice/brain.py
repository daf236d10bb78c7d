"""The interface of a brain, which answers a caller's turns: an LLM or the tenant's webhook.

A conversation runs ``agent`` in a session with ``llm``. Everything else (hearing, speaking, turn
taking, barge-in) is the same for both.
"""

from __future__ import annotations

from typing import Any, Protocol

from livekit.agents import AgentSession, llm

from worker.voice.turn_agent import TurnAgent


class Brain(Protocol):
    """The brain of one call. ``aclose`` it after the session."""

    @property
    def agent(self) -> TurnAgent:
        """The agent that the session runs."""

    @property
    def llm(self) -> llm.LLM[Any]:
        """The session's LLM; without one the session answers no turns."""

    @property
    def guesses(self) -> bool:
        """True if an answer may be started before the turn is certain to be over."""

    def attach(self, session: AgentSession[None]) -> None:
        """Attach to the session before it starts."""

    async def warm(self) -> None:
        """Prepare for the first turn. A failure is not reported here, but when that turn fails."""

    async def aclose(self) -> None: ...
