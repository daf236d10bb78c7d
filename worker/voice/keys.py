"""The turn of a caller who pressed keys instead of speaking."""

from __future__ import annotations

from livekit.agents.llm import ChatMessage

DIGITS = "digits"
"""Under which a message's ``extra`` has the keys."""


def pressed(digits: str) -> ChatMessage:
    """For a model, words; for a webhook, the keys besides."""
    return ChatMessage(
        role="user", content=[f"[The caller pressed {digits}]"], extra={DIGITS: digits}
    )
