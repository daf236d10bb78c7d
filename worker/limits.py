"""Clocks of a call: how long it may last, and how long nobody may say anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class SilenceClock:
    """Calls ``on_silence`` once, ``limit_s`` seconds after the last sign of life.

    While anybody is busy (speaking, thinking) no silence runs.
    """

    def __init__(self, limit_s: float, on_silence: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._on_silence = on_silence
        self._busy: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._running = False

    def start(self) -> None:
        self._running = True
        self.touch()

    def stop(self) -> None:
        self._running = False
        self._cancel()

    def busy(self, who: str, busy: bool) -> None:
        """``who`` begins or stops being busy."""
        if busy:
            self._busy.add(who)
        else:
            self._busy.discard(who)
        self.touch()

    def touch(self) -> None:
        """A sign of life: silence counts from now."""
        self._cancel()
        if self._running and not self._busy:
            self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._on_silence)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
