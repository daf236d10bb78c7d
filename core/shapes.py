"""The base of the models that gateway and worker share: their JSON shape, times, ids, and texts."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer
from pydantic.alias_generators import to_camel


def now() -> datetime:
    """Return the current UTC time, cut to whole milliseconds as it is stored and shown."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def rfc3339(moment: datetime) -> str:
    """Format as 2026-01-31T12:00:00.000Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_id(prefix: str) -> str:
    """Return ``call_…``: the prefix and 96 random bits in hexadecimal."""
    return f"{prefix}_{secrets.token_hex(12)}"


Timestamp = Annotated[datetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]


class Model(BaseModel):
    """camelCase on the wire, snake_case in Python, both accepted on input."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    def wire(self) -> dict[str, Any]:
        """Return JSON-ready values, by alias."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True, slots=True)
class Words:
    """Marks text for the agent or its model in which a call's variables replace ``{{name}}``.

    gateway.calls.variables fills marked fields only.
    """

    blank: bool = True
    """False: the field takes no blank text, and is left out if the variables make it blank."""


Text = Annotated[str, Words()]
