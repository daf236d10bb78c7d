"""An agent's actions on its call, requested by a tool or by a webhook."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from worker.line import KEYS, LineError
from worker.privacy.control import RecordingControl


class ActionFailed(Exception):
    """The call continues unchanged. The text may be shown to users and LLMs."""


@dataclass(frozen=True, slots=True)
class Actions:
    """``post`` appends to the call's timeline; ``hang_up`` ends the call at once.

    ``tone`` plays a key to the far end (worker.line: ``press``).

    ``transfer`` hands the caller over to the agent's transfer number and returns when that is
    done, or raises ActionFailed.
    """

    tone: Callable[[str], Awaitable[None]]
    post: Callable[[str, dict[str, Any]], object]
    hang_up: Callable[[], None]
    transfer: Callable[[], Awaitable[None]]
    recording: RecordingControl
    tone_gap_s: float = 0.3

    async def press(self, digits: str) -> str:
        """Play keypad tones to the far end, one after the other; return the pressed keys.

        Raises ActionFailed for other keys than 0-9, *, #, A-D, or if the line cannot play them.
        """
        keys = digits.upper().replace(" ", "")
        if not keys or any(key not in KEYS for key in keys):
            raise ActionFailed("only 0-9, *, #, A-D can be pressed")
        for position, key in enumerate(keys):
            if position:
                await asyncio.sleep(self.tone_gap_s)
            try:
                await self.tone(key)
            except (LineError, TimeoutError) as error:
                raise ActionFailed(str(error) or "the keys were not played in time") from None
        self.post("dtmf.sent", {"digits": keys})
        return keys


async def no_transfer() -> None:
    """``transfer`` for an agent without a transfer number."""
    raise ActionFailed("the agent has no transferNumber")
