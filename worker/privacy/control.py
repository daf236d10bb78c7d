"""Pauses and masks a call: by the API, by the agent, and while a caller types in secret."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Literal

from core.models import now, rfc3339
from core.recordings.command import Command
from core.recovery import Recovered
from worker.privacy.gate import Gate

# The last key's tone goes on after the key is known, and a caller may press one too many.
_TAIL_S = 0.5
# How long a secret entry's mask outlasts its agent: a caller who was typing may go on, and the next
# agent asks again, which masks the call anew.
_HELD_S = 10.0

By = Literal["api", "agent"]


class RecordingControl:
    """Shuts and opens the gate of one call. ``post`` appends to the timeline, past the gate.

    A pause keeps nothing. A mask also makes the agent deaf. Masks of the API end by themselves,
    those of secret entries with the entry.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        post: Callable[[str, dict[str, Any]], object],
        tail_s: float = _TAIL_S,
    ) -> None:
        """``tail_s``: how much longer than a secret entry its mask lasts."""
        self._gate = gate
        self._post = post
        self._tail_s = tail_s
        self._paused = False
        self._until: datetime | None = None
        self._entries = 0
        self._timers: set[asyncio.TimerHandle] = set()
        self._end: asyncio.TimerHandle | None = None
        self.deaf = False
        self.deafened: list[Callable[[bool], None]] = []
        """Called when a mask begins (True), and when it ends."""

    def restore(self, so_far: Recovered) -> None:
        """Hold on to what was in force when the former agent was lost.

        Call it when the call's clock runs, and ``deafened`` is complete.
        """
        loop = asyncio.get_running_loop()
        if so_far.paused:
            self._paused = True
            self._gate.shut("paused")
        if so_far.typing_secretly:
            self._entries += 1
            self._timers.add(loop.call_later(_HELD_S, self._entry_over))
        until = so_far.masked_until
        if until is not None and (left := (until - now()).total_seconds()) > 0:
            self._until, self._end = until, loop.call_later(left, self._stop_mask)
        self._settle()
        if until is not None and not self.deaf:
            self._tell("recording.unmasked")

    def obey(self, command: Command) -> None:
        """Do what the API asks, and confirm it, also if there is nothing to do."""
        match command.action:
            case "pause":
                self.pause("api", command=command.id)
            case "resume":
                self._stop_mask()
                self.resume("api", command=command.id)
            case "mask":
                self._mask(command.seconds or 1, command.id)

    def pause(self, by: By, **more: str) -> None:
        self._paused = True
        self._gate.shut("paused")
        self._tell("recording.paused", by=by, **more)

    def resume(self, by: By, **more: str) -> None:
        """End a pause, whoever made it."""
        self._paused = False
        self._gate.open("paused")
        self._tell("recording.resumed", by=by, **more)

    @contextmanager
    def secretly(self) -> Iterator[None]:
        """Mask the call for the block, and a moment longer."""
        self._entries += 1
        self._settle()
        self._tell("recording.masked", by="agent")
        try:
            yield
        finally:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._tail_s, self._entry_over)
            self._timers.add(timer)

    def close(self) -> None:
        """Stop the clocks: the call is over. What is shut stays shut."""
        self._stop_clock()
        for timer in self._timers:
            timer.cancel()

    def _mask(self, seconds: int, command: str) -> None:
        self._stop_clock()
        self._until = now() + timedelta(seconds=seconds)
        self._end = asyncio.get_running_loop().call_later(seconds, self._stop_mask)
        self._settle()
        self._tell("recording.masked", by="api", seconds=seconds, command=command)

    def _stop_mask(self) -> None:
        self._stop_clock()
        self._until = None
        self._settle()

    def _stop_clock(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def _entry_over(self) -> None:
        self._entries -= 1
        self._settle()

    def _settle(self) -> None:
        """Begin or end the mask."""
        masked = self._until is not None or self._entries > 0
        if masked == self.deaf:
            return
        self.deaf = masked
        if masked:
            self._gate.shut("masked")
        for call in self.deafened:
            call(masked)
        if not masked:
            self._gate.open("masked")
            self._tell("recording.unmasked")

    def _tell(self, type: str, **data: Any) -> None:
        state = "masked" if self.deaf else "paused" if self._paused else "on"
        until = {"until": rfc3339(self._until)} if self._until is not None else {}
        self._post(type, {**data, "recording": state, **until})
