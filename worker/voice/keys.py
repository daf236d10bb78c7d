"""The turn of a caller who presses keys instead of speaking."""

from __future__ import annotations

import re

from livekit.agents.llm import ChatMessage

DIGITS = "digits"
"""The key of a message's ``extra`` that holds the pressed keys."""


def pressed(digits: str) -> ChatMessage:
    """Return the message: words for an LLM, and the keys themselves for a webhook."""
    return ChatMessage(
        role="user", content=[f"[The caller pressed {digits}]"], extra={DIGITS: digits}
    )


def keys_in(text: str) -> str | None:
    """Return the keys that ``pressed`` made this text of; None: it is none of its texts."""
    met = re.fullmatch(r"\[The caller pressed ([0-9A-D*#]+)\]", text)
    return met and met[1]
