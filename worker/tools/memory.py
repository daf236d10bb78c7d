"""Reports what the call's next agent must know of the tools that ran (core.tools.memory).

What may not be kept of a call is not reported: while the gate is shut a tool's arguments and result
are left out, personal data is removed, and secret digits are never in it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from core.tools.memory import (
    MOST_ARGUMENTS,
    MOST_RESULT,
    TOOL_ANSWERED,
    TOOL_CALLED,
    ToolAnswered,
    ToolCalled,
)
from worker.privacy.gate import Gate
from worker.privacy.secrets import Secrets

KNOWN_WITHIN_S: Final = 1.0
"""How long a tool waits until the gateway knows of it, usually for a few milliseconds. Later its
disk alone knows, which is enough unless the whole machine is lost."""


class Memory:
    """``post`` appends an event; ``secured`` is worker.link.reporter's; ``turn`` returns the id of
    the caller's last turn, ``now_ms`` the time on the call's clock."""

    def __init__(
        self,
        gate: Gate,
        *,
        post: Callable[[str, dict[str, Any]], object],
        secured: Callable[[float], Awaitable[bool]],
        turn: Callable[[], str | None],
        now_ms: Callable[[], int],
    ) -> None:
        self._gate = gate
        self._post = post
        self._secured = secured
        self._turn = turn
        self._now_ms = now_ms

    async def called(self, id: str, name: str, arguments: dict[str, Any], secrets: Secrets) -> bool:
        """Report a tool before it runs. Return False if it must not run: the agent was replaced, or
        the call is over."""
        called = ToolCalled(
            id=id,
            name=name,
            arguments=self.kept(arguments, secrets),
            turn=self._turn(),
            at_ms=self._now_ms(),
        )
        self._post(TOOL_CALLED, called.wire())
        return await self._secured(KNOWN_WITHIN_S)

    def answered(self, id: str, ok: bool, result: str, secrets: Secrets) -> None:
        """Report what the tool's outcome is."""
        kept = self._gate.kept(secrets.hide(result))
        if kept is not None and len(kept) > MOST_RESULT:
            kept = None
        answered = ToolAnswered(id=id, ok=ok, result=kept, at_ms=self._now_ms())
        self._post(TOOL_ANSWERED, answered.wire())

    def kept(self, arguments: dict[str, Any], secrets: Secrets) -> dict[str, Any] | None:
        """Return the arguments as they may be kept; None: not at all."""
        kept: dict[str, Any] | None = self._gate.kept(secrets.hide(arguments))
        return None if kept is None or len(json.dumps(kept)) > MOST_ARGUMENTS else kept
