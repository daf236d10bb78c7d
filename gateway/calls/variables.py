"""Replace ``{{name}}`` in an agent's words by the call's variables."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, Field, StrictStr, ValidationError

from core.errors import Detail, Unprocessable
from core.models import Agent, AgentConfig, Words

_PLACEHOLDER = re.compile(r"\{\{\s*([^{}]{1,64}?)\s*\}\}")

Name = Annotated[str, Field(min_length=1, max_length=64)]
Value = Annotated[StrictStr, Field(max_length=5_000)]
Variables = Annotated[dict[Name, Value | None], Field(max_length=100)]
"""Values by name; null stands for an empty text."""

M = TypeVar("M", bound=BaseModel)


def fill(agent: Agent, variables: Variables) -> Agent:
    """Return the agent with the placeholders in all its Words (core.models) filled in.

    Placeholders without a variable stay as they are. Raises Unprocessable if a text gets longer
    than an agent's may be.
    """
    if not variables:
        return agent
    try:
        # The pinned agent is parsed and validated again when the worker asks for it.
        words = _model(agent.config, variables)
        filled = AgentConfig.model_validate(words.model_dump())
    except ValidationError:
        message = "the agent's words get too long with these values"
        detail = Detail("variables", message, "too_long")
        raise Unprocessable(f"variables: {message}", details=[detail]) from None
    return agent.model_copy(update={"config": filled})


def mark_of(kind: Any) -> Words | None:
    """Return the mark in a type: ``Text``, ``Text | None``, ``list[Text]``; None: not words."""
    if isinstance(kind, Words):
        return kind
    return next(filter(None, map(mark_of, get_args(kind))), None)


def _model(model: M, variables: Variables) -> M:
    changes = {}
    for name, field in type(model).model_fields.items():
        mark = mark_of(Annotated[field.annotation, *field.metadata, None])
        changes[name] = _value(getattr(model, name), mark, variables)
    return model.model_copy(update=changes)


def _value(value: Any, mark: Words | None, variables: Variables) -> Any:
    if isinstance(value, BaseModel):
        return _model(value, variables)
    if isinstance(value, list):
        filled = [_value(each, mark, variables) for each in value]
        return [each for each in filled if each is not None]
    if mark is None or not isinstance(value, str):
        return value
    text = _filled(value, variables)
    return text if mark.blank or text.strip() else None


def _filled(text: str, variables: Variables) -> str:
    def value(met: re.Match[str]) -> str:
        name = met[1]
        return (variables[name] or "") if name in variables else met[0]

    return _PLACEHOLDER.sub(value, text)
