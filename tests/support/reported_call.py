"""The events that a worker has reported for one call, for tests to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.models import CallEvent, Turn


@dataclass(kw_only=True)
class ReportedCall:
    events: list[CallEvent] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def of(self, type: str) -> list[CallEvent]:
        return [event for event in self.events if event.type == type]

    @property
    def turns(self) -> list[Turn]:
        """The latest version of each turn, in order of appearance."""
        turns = {event.data["id"]: event.data for event in self.of("turn")}
        return [Turn.model_validate(turn) for turn in turns.values()]

    async def until(
        self, condition: Callable[[ReportedCall], Any], what: str, within_s: float = 30.0
    ) -> None:
        """Wait until the condition holds. Raises AssertionError naming the events so far."""
        try:
            async with asyncio.timeout(within_s), self.changed:
                await self.changed.wait_for(lambda: condition(self))
        except TimeoutError:
            seen = [(event.type, event.data) for event in self.events]
            raise AssertionError(f"no {what} within {within_s:g} s; got {seen}") from None

    async def event(self, type: str, within_s: float = 30.0) -> CallEvent:
        """Wait for the first event of that type and return it."""
        await self.until(lambda call: call.of(type), type, within_s)
        return self.of(type)[0]
