"""What every agent of ours has in common, whatever answers its turns."""

from __future__ import annotations

from collections.abc import Callable

from livekit.agents import Agent, StopResponse, llm


class TurnAgent(Agent):
    """``takes_turn`` is asked whether a turn of the caller's is to be answered; by default all."""

    takes_turn: Callable[[llm.ChatMessage], bool] | None = None

    async def on_user_turn_completed(
        self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
    ) -> None:
        """livekit-agents' hook before it answers."""
        if self.takes_turn is not None and not self.takes_turn(new_message):
            raise StopResponse
