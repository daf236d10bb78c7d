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

from worker.voice.transcript import spoken_text


class Tell(Protocol):
    def __call__(self, type: str, **data: Any) -> None: ...


class Captions:
    """Tells of the agent's words while they are heard."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._shown = ""

    def show(self, said: str) -> None:
        """``said`` of the current speech was heard so far."""
        if said and said != self._shown:
            self._tell("transcript", role="agent", text=said, final=False)
        self._shown = said


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
