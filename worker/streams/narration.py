"""Tells a client what goes on in its session: who says what, and what the agent does."""

from __future__ import annotations

from typing import Any, Protocol

from livekit.agents import (
    AgentSession,
    AgentStateChangedEvent,
    ConversationItemAddedEvent,
    FunctionToolsExecutedEvent,
    UserInputTranscribedEvent,
    llm,
)
from livekit.agents.voice import io

from worker.voice.transcript import spoken_text


class Tell(Protocol):
    def __call__(self, type: str, **data: Any) -> None: ...


class Captions(io.TextOutput):
    """The agent's words as they are heard. ``said``: those of the current speech."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(label="captions", next_in_chain=None)
        self._tell = tell
        self._complete = False
        self.said = ""

    async def capture_text(self, text: str) -> None:
        if self._complete:
            self._complete, self.said = False, ""
        self.said += text
        self._tell("transcript", role="agent", text=self.said.strip(), final=False)

    def flush(self) -> None:
        self._complete = True


def narrate(session: AgentSession[None], tell: Tell) -> None:
    """Tell of the session's turns, states and tools."""

    def heard(event: UserInputTranscribedEvent) -> None:
        tell("transcript", role="user", text=event.transcript, final=event.is_final)

    def said(event: ConversationItemAddedEvent) -> None:
        item = event.item
        if isinstance(item, llm.ChatMessage) and item.role == "assistant":
            tell("transcript", role="agent", text=spoken_text(item), final=True)

    def changed(event: AgentStateChangedEvent) -> None:
        if event.new_state in {"listening", "thinking", "speaking"}:
            tell("state", state=event.new_state)

    def ran(event: FunctionToolsExecutedEvent) -> None:
        for call in event.function_calls:
            tell("tool_call", id=call.call_id, name=call.name, arguments=call.arguments)

    session.on("user_input_transcribed", heard)
    session.on("conversation_item_added", said)
    session.on("agent_state_changed", changed)
    session.on("function_tools_executed", ran)
