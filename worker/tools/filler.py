"""What an agent says while a tool keeps the caller waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from livekit.agents import ConversationItemAddedEvent, RunContext, llm
from livekit.agents.voice import SpeechHandle

from core.models import CustomTool

# Spoken in the agent's language when its owner gave no words; elsewhere, silence.
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
    """What is said while the tool runs; None: nothing."""
    if not tool.speak_during_execution:
        return None
    return tool.execution_message or _WORDS.get(language.split("-")[0].lower())


@asynccontextmanager
async def waiting(context: RunContext[Any], tool: CustomTool, language: str) -> AsyncIterator[None]:
    """Around the tool's request: the words are spoken as soon as nobody else speaks.

    A tool that has answered by then is not talked over.
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
            # Models are told of a tool's call and its result in one: words between the two would
            # come after both, as if the result had been spoken of.
            item.created_at = context.function_call.created_at - 0.001

    context.session.on("conversation_item_added", said)
    try:
        async with context.with_filler(say):
            yield
    finally:
        context.session.off("conversation_item_added", said)
