"""What an agent that takes over a call is told of the tools that ran in it.

Arguments and results are on no timeline: a worker reports them as events ``memory.…``, which the
gateway keeps apart, sealed, until the call ends (gateway.store.lost.call_memory).

    memory.tool_called    {ToolCalled}     before the tool runs
    memory.tool_answered  {ToolAnswered}   when its outcome is known
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from core.shapes import Model

MEMORY: Final = "memory."
"""What the types of these events begin with. They are on no timeline."""
TOOL_CALLED: Final = "memory.tool_called"
TOOL_ANSWERED: Final = "memory.tool_answered"

MOST_ARGUMENTS: Final = 8 * 1024
MOST_RESULT: Final = 16 * 1024
"""Characters (of arguments: as JSON, in ASCII). Longer ones are not kept at all: a number that
is cut in two would not be recognised any more."""

SECRET_DIGITS: Final = "[secret digits]"
"""Stands for digits that the caller typed in secret: they are lost with their agent."""

_MOST_MS = 2**31 - 1


def _short(arguments: dict[str, Any] | None) -> dict[str, Any] | None:
    if arguments is not None and len(json.dumps(arguments)) > MOST_ARGUMENTS:
        raise ValueError("too long")
    return arguments


class ToolCalled(Model):
    id: str = Field(min_length=1, max_length=128)
    """Unique in the call; a part of the ``Idempotency-Key``."""
    name: str = Field(min_length=1, max_length=128)
    arguments: Annotated[dict[str, Any] | None, AfterValidator(_short)] = None
    """None: not kept."""
    turn: str | None = Field(None, max_length=64)
    """The caller's last turn; None: there was none yet."""
    at_ms: int = Field(ge=0, le=_MOST_MS)
    """On the call's clock."""


class ToolAnswered(Model):
    id: str = Field(min_length=1, max_length=128)
    ok: bool
    result: str | None = Field(None, max_length=MOST_RESULT)
    at_ms: int = Field(ge=0, le=_MOST_MS)


class ToolRun(Model):
    """A tool that an earlier agent of the call ran."""

    called: ToolCalled
    answered: ToolAnswered | None = None
    """None: it is not known whether the tool did anything."""
