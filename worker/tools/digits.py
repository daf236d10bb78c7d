"""The keys a caller presses: a turn of theirs, or what somebody has asked them for.

livekit-agents' ``GetDtmfTask`` is not used: it takes the agent's instructions and tools away
while it runs, listens to every participant, and waits without end for a first key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from worker.tools.actions import ActionFailed

Outcome = Literal["complete", "stopped", "nothing"]

MAX_KEYS = 32


class Entry:
    """Keys that were asked for: ``count`` of them, or fewer and then ``terminator``."""

    def __init__(self, count: int, terminator: str) -> None:
        self.digits = ""
        self._count = count
        self._terminator = terminator
        self._complete = asyncio.Event()
        self._pressed = asyncio.Event()

    @property
    def complete(self) -> bool:
        return self._complete.is_set()

    def press(self, digit: str) -> None:
        """Take one more key; what comes after the last one is not looked at."""
        if self.complete:
            return
        if digit != self._terminator:
            self.digits += digit
        if digit == self._terminator or len(self.digits) >= self._count:
            self._complete.set()
        self._pressed.set()

    async def completed(self) -> None:
        """Wait for the last key, however long that takes."""
        await self._complete.wait()

    async def finish(self, *, first_s: float, next_s: float) -> Outcome:
        """Wait for the keys still to come: ``first_s`` for the first, ``next_s`` for each other."""
        while not self.complete:
            self._pressed.clear()
            try:
                async with asyncio.timeout(next_s if self.digits else first_s):
                    await self._pressed.wait()
            except TimeoutError:
                return "stopped" if self.digits else "nothing"
        return "complete"


class Keypad:
    """Hands keys to the entry that waits for them; else collects those pressed within
    ``window_s`` of each other into one turn."""

    def __init__(self, on_turn: Callable[[str], None], window_s: float = 1.5) -> None:
        self._on_turn = on_turn
        self._window_s = window_s
        self._digits = ""
        self._timer: asyncio.TimerHandle | None = None
        self._entry: Entry | None = None
        self._closed = False

    def pressed(self, digit: str) -> None:
        if self._entry is not None:
            self._entry.press(digit)
        else:
            self._keep(digit)

    @contextmanager
    def asking(self, count: int, terminator: str) -> Iterator[Entry]:
        """Keys are the entry's inside the block, with those pressed a moment before it.

        Leaving it with an exception (the caller interrupted) makes a turn of them after all.
        Raises ActionFailed: somebody asks already.
        """
        if self._entry is not None:
            raise ActionFailed("keys are asked for already")
        entry = Entry(count, terminator)
        for digit in self._take().lstrip(terminator):
            entry.press(digit)
        self._entry = entry
        try:
            yield entry
        except BaseException:
            self._keep(entry.digits)
            raise
        finally:
            self._entry = None

    def close(self) -> None:
        """The call is over: keys are nothing any more."""
        self._closed = True
        self._take()

    def _keep(self, digits: str) -> None:
        if not digits or self._closed:
            return
        self._digits = self._take() + digits
        self._timer = asyncio.get_running_loop().call_later(self._window_s, self._flush)

    def _take(self) -> str:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        digits, self._digits = self._digits, ""
        return digits

    def _flush(self) -> None:
        self._on_turn(self._take())


COLLECT_DIGITS = {
    "name": "collect_digits",
    "description": (
        "Wait for the caller to type a number on the telephone keypad, for example a PIN or a "
        "customer number. Ask for it in the same reply, and say which key ends it."
    ),
    "parameters": {
        "type": "object",
        "properties": {
            "digits": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_KEYS,
                "description": "How many keys at most.",
            },
            "terminator": {
                "type": "string",
                "enum": ["#", "*", ""],
                "description": "The key that ends it earlier, # if not given; empty: none.",
            },
            "timeoutSeconds": {
                "type": "integer",
                "minimum": 1,
                "maximum": 30,
                "description": "How long to wait for the first key, 10 if not given.",
            },
        },
        "required": ["digits"],
    },
}
_FIRST_S, NEXT_S = 10, 5.0


async def collect(
    keypad: Keypad,
    arguments: dict[str, Any],
    *,
    asked: Callable[[], Awaitable[None]],
    next_s: float = NEXT_S,
) -> str:
    """The tool: what the caller typed, in words for an LLM.

    ``asked`` returns when the question has been spoken; time-outs count from then, keys from
    now. ``next_s``: how long each key but the first is waited for. Cancelling it is safe: keys
    are a turn again. Raises ActionFailed: wrong arguments, or it runs already.
    """
    count = _number(arguments, "digits", None, MAX_KEYS)
    first_s = _number(arguments, "timeoutSeconds", _FIRST_S, 30)
    terminator = arguments.get("terminator", "#")
    if terminator not in ("#", "*", ""):
        raise ActionFailed("terminator is #, * or empty")
    with keypad.asking(count, terminator) as entry:
        await _first_of(asked(), entry.completed())
        outcome = await entry.finish(first_s=first_s, next_s=next_s)
    if not entry.digits:
        return "The caller pressed no digits."
    return f"The caller pressed {entry.digits}" + (
        "." if outcome == "complete" else f", then nothing for {next_s:g} seconds."
    )


def _number(arguments: dict[str, Any], name: str, default: int | None, most: int) -> int:
    given = arguments.get(name, default)
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= most:
        raise ActionFailed(f"{name} is a whole number from 1 to {most}")
    return given


async def _first_of(*waits: Awaitable[None]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
