"""Timers of a call: the warning before the maximum duration, and the silence limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from core.jobs import CallBrief
from core.recovery import Recovered

_WARNING_S = 30.0
_MADE_UP_AFTER_S = 5.0


def warning_after_s(duration_s: float) -> float:
    """Return when to warn of the maximum duration: 30 s before it, or half way in short calls."""
    return duration_s - _WARNING_S if duration_s >= 2 * _WARNING_S else duration_s / 2


class DurationClock:
    """Calls ``warn`` with ``warning`` before the end of a call's ``limit_s`` seconds, if there is
    one, and then ``on_over``."""

    def __init__(
        self,
        limit_s: float,
        on_over: Callable[[], None],
        *,
        warning: str | None,
        warn: Callable[[str], object],
    ) -> None:
        self._limit_s = limit_s
        self._on_over = on_over
        self._warning = warning
        self._warn = warn
        self._timers: list[asyncio.TimerHandle] = []

    def start(self, *, passed_s: float = 0.0, told_s: float = 0.0) -> None:
        """``passed_s``: since the answer. ``told_s``: until then a former agent has warned; what it
        missed is made up for after the re-entry line."""
        later = asyncio.get_running_loop().call_later
        self._timers.append(later(self._limit_s - passed_s, self._on_over))
        warn_s = warning_after_s(self._limit_s)
        if self._warning is not None and warn_s >= told_s:
            in_s = max(warn_s - passed_s, _MADE_UP_AFTER_S if told_s else 0.0)
            self._timers.append(later(in_s, self._warn, self._warning))

    def stop(self) -> None:
        for timer in self._timers:
            timer.cancel()


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
        prompted: int = 0,
    ) -> None:
        """``prompted``: how many of ``prompts`` were said before, by a former agent."""
        self._limit_s = limit_s
        self._on_silence = on_silence
        self._prompts = prompts
        self._prompt_s = prompt_s
        self._on_prompt = on_prompt
        self._prompted = prompted
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


class Clocks:
    """The clocks of one call; ``end`` ends it. ``so_far``: of a call that its agent takes over."""

    def __init__(
        self,
        brief: CallBrief,
        so_far: Recovered | None,
        *,
        end: Callable[[Literal["max_duration", "silence"]], None],
        say: Callable[[str], object],
        prompt: Callable[[str], None],
    ) -> None:
        config = brief.agent.config
        self.duration = DurationClock(
            brief.max_duration_ms / 1000,
            partial(end, "max_duration"),
            warning=config.max_duration_warning,
            warn=say,
        )
        self.silence = SilenceClock(
            config.max_silence_ms / 1000,
            partial(end, "silence"),
            prompts=config.silence_prompts,
            prompt_s=config.silence_prompt_ms / 1000,
            on_prompt=prompt,
            prompted=0 if so_far is None else so_far.silence_prompts,
        )

    def start(self, *, passed_s: float = 0.0, told_s: float = 0.0) -> None:
        """See DurationClock.start."""
        self.duration.start(passed_s=passed_s, told_s=told_s)
        self.silence.start()

    def stop(self) -> None:
        self.duration.stop()
        self.silence.stop()
