"""A brain answers a caller's turns: a model that the worker asks, or the tenant's webhook.

A conversation runs ``agent`` in a session that has ``llm``; all else (hearing, speaking, turn
taking, barge-in) is the same for both.
"""

from __future__ import annotations

from typing import Any, Protocol

from livekit.agents import AgentSession, llm

from worker.voice.turn_agent import TurnAgent


class Brain(Protocol):
    """One call's; ``aclose`` it after the session."""

    @property
    def agent(self) -> TurnAgent:
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
