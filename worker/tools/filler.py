"""The words that an agent says while the caller waits for a tool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from livekit.agents import ConversationItemAddedEvent, RunContext, llm
from livekit.agents.voice import SpeechHandle

from core.models import CustomTool

# Spoken in the agent's language if its owner gave no words; nothing is said in other languages.
_WORDS = {
    "en": "One moment, please.",
    "de": "Einen Moment, bitte.",
    "es": "Un momento, por favor.",
    "fr": "Un instant, s'il vous plaît.",
    "it": "Un momento, per favore.",
    "nl": "Een ogenblik, alstublieft.",
    "pt": "Um momento, por favor.",
}


def words(tool: CustomTool, language: str) -> str | None:
    """Return the words to say while the tool runs; None for nothing."""
    if not tool.speak_during_execution:
        return None
    return tool.execution_message or _WORDS.get(language.split("-")[0].lower())


@asynccontextmanager
async def waiting(context: RunContext[Any], tool: CustomTool, language: str) -> AsyncIterator[None]:
    """Say the words during the block, as soon as nobody else speaks.

    They are not said if the tool has answered by then.
    """
    text = words(tool, language)
    if text is None:
        yield
        return
    spoken: list[SpeechHandle] = []

    def say(_step: int) -> SpeechHandle:
        spoken.append(context.session.say(text))
        return spoken[-1]

    def said(event: ConversationItemAddedEvent) -> None:
        item = event.item
        if isinstance(item, llm.ChatMessage) and any(item in each.chat_items for each in spoken):
            # LLMs get a tool's call and its result together. Words dated between the two would come
            # after both, as if the agent had said them about the result.
            item.created_at = context.function_call.created_at - 0.001

    context.session.on("conversation_item_added", said)
    try:
        async with context.with_filler(say):
            yield
    finally:
        context.session.off("conversation_item_added", said)
