"""Timers of a call: the warning before the maximum duration, and the silence limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

_WARNING_S = 30.0


def warning_after_s(duration_s: float) -> float:
    """Return when to warn of the maximum duration: 30 s before it, or half way in short calls."""
    return duration_s - _WARNING_S if duration_s >= 2 * _WARNING_S else duration_s / 2


class SilenceClock:
    """Calls ``on_silence`` once, after ``limit_s`` seconds without activity.

    Before that, it calls ``on_prompt`` with the next of ``prompts`` after every ``prompt_s``
    seconds of silence; the caller's activity restarts the list. A prompt counts as activity,
    because the agent speaks. The clock stands still while anybody is busy (speaking, thinking).
    """

    def __init__(
        self,
        limit_s: float,
        on_silence: Callable[[], None],
        *,
        prompts: Sequence[str] = (),
        prompt_s: float = 0.0,
        on_prompt: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._limit_s = limit_s
        self._on_silence = on_silence
        self._prompts = prompts
        self._prompt_s = prompt_s
        self._on_prompt = on_prompt
        self._prompted = 0
        self._busy: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._running = False

    def start(self) -> None:
        self._running = True
        self._restart()

    def stop(self) -> None:
        self._running = False
        self._cancel()

    def busy(self, who: str, busy: bool) -> None:
        """Note that ``who`` begins or stops being busy."""
        if busy:
            self._busy.add(who)
        else:
            self._busy.discard(who)
        if who == "caller" and busy:
            self._prompted = 0
        self._restart()

    def touch(self) -> None:
        """Restart the silence, because the caller was active."""
        self._prompted = 0
        self._restart()

    def _restart(self) -> None:
        self._cancel()
        if not self._running or self._busy:
            return
        loop = asyncio.get_running_loop()
        if self._prompted < len(self._prompts) and self._prompt_s < self._limit_s:
            self._timer = loop.call_later(self._prompt_s, self._prompt)
        else:
            self._timer = loop.call_later(self._limit_s, self._on_silence)

    def _prompt(self) -> None:
        text = self._prompts[self._prompted]
        self._prompted += 1
        # Restart before the agent speaks: if it cannot speak, the clock must run all the same.
        self._restart()
        self._on_prompt(text)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
