"""A command from the API to a call's worker: keep nothing for a while, or keep again."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from core.models import Model

Action = Literal["pause", "resume", "mask"]

COMMAND_TOPIC: Final = "switchroom.recording"
"""The topic of data packets that bring a command to the agent in a room."""

MAX_MASK_S: Final = 300


class Command(Model):
    """``id`` is in the event with which the worker confirms it."""

    id: str = Field(min_length=1, max_length=64)
    action: Action
    seconds: int | None = Field(None, ge=1, le=MAX_MASK_S)
    """How long a mask lasts; None for other actions."""
