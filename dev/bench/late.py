"""How late the simulated providers answered: a turn with a late one is not counted."""

from __future__ import annotations

from dev.stack import Stack

LATE_MS = 3.0
"""A turn is left out if a provider was later than this."""


class Late:
    """Reads the log of the stack's providers."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._seq = 0

    async def since_last(self) -> list[float]:
        """Return the delay beyond the configured one of each answer since the last call, in ms.

        Of a voice it is that of its first byte.
        """
        entries = await self._stack.provider_log(self._seq)
        self._seq = max((entry["seq"] for entry in entries), default=self._seq)
        late = [entry.get("first_byte_late_ms", entry.get("late_ms")) for entry in entries]
        return [ms for ms in late if ms is not None]
