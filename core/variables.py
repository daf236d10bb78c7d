"""``{{name}}`` in an agent's words, replaced by what a call brings along."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, StrictStr, ValidationError

from core.errors import Detail, Unprocessable
from core.models import Agent, AgentConfig

_PLACEHOLDER = re.compile(r"\{\{\s*([^{}]{1,64}?)\s*\}\}")

Name = Annotated[str, Field(min_length=1, max_length=64)]
Value = Annotated[StrictStr, Field(max_length=5_000)]
Variables = Annotated[dict[Name, Value | None], Field(max_length=100)]
"""By name; null is nothing to say."""


def fill(agent: Agent, variables: Variables) -> Agent:
    """The agent as this call shall have it: systemPrompt, beginMessage, voicemailMessage and
    transferBriefing filled in.

    Placeholders without a variable stay as they are. Raises Unprocessable when the text
    gets longer than an agent's may be.
    """
    if not variables:
        return agent
    config = agent.config
    words = {
        "system_prompt": _filled(config.system_prompt, variables),
        "begin_message": config.begin_message and _filled(config.begin_message, variables),
        "voicemail_message": config.voicemail_message
        and _filled(config.voicemail_message, variables),
        "transfer_briefing": config.transfer_briefing
        and (_filled(config.transfer_briefing, variables).strip() or None),
    }
    try:
        # What is pinned is read again, and checked again, when the worker asks for it.
        filled = AgentConfig.model_validate({**config.model_dump(), **words})
    except ValidationError:
        message = "the agent's words get too long with these values"
        detail = Detail("variables", message, "too_long")
        raise Unprocessable(f"variables: {message}", details=[detail]) from None
    return agent.model_copy(update={"config": filled})


def _filled(text: str, variables: Variables) -> str:
    def value(met: re.Match[str]) -> str:
        name = met[1]
        return (variables[name] or "") if name in variables else met[0]

    return _PLACEHOLDER.sub(value, text)
