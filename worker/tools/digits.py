"""The keys a caller presses: a turn of their own, or the answer to the tool ``collect_digits``.

livekit-agents' ``GetDtmfTask`` is not used: it removes the agent's instructions and tools while
it runs, listens to every participant, and waits without end for the first key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

from worker.privacy.secrets import Secrets
from worker.tools.actions import ActionFailed

Outcome = Literal["complete", "stopped", "nothing"]

MAX_KEYS = 32


class Entry:
    """Requested keys: ``count`` of them, or fewer followed by ``terminator``."""

    def __init__(self, count: int, terminator: str, *, secret: bool) -> None:
        self.digits = ""
        self.secret = secret
        self._count = count
        self._terminator = terminator
        self._complete = asyncio.Event()
        self._pressed = asyncio.Event()

    @property
    def complete(self) -> bool:
        return self._complete.is_set()

    def press(self, digit: str) -> None:
        """Take one more key. Keys after the last one are ignored."""
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
        """Wait for the remaining keys: ``first_s`` for the first, ``next_s`` for each other one."""
        while not self.complete:
            self._pressed.clear()
            try:
                async with asyncio.timeout(next_s if self.digits else first_s):
                    await self._pressed.wait()
            except TimeoutError:
                return "stopped" if self.digits else "nothing"
        return "complete"


class Keypad:
    """Passes keys to the entry that waits for them. Otherwise it collects keys pressed within
    ``window_s`` of each other into one turn. While ``deaf``, only a secret entry gets keys."""

    def __init__(self, on_turn: Callable[[str], None], window_s: float = 1.5) -> None:
        self._on_turn = on_turn
        self._window_s = window_s
        self._digits = ""
        self._timer: asyncio.TimerHandle | None = None
        self._entry: Entry | None = None
        self._closed = False
        self._deaf = False

    def pressed(self, digit: str) -> None:
        entry = self._entry
        if self._deaf and (entry is None or not entry.secret):
            return
        if entry is not None:
            entry.press(digit)
        else:
            self._keep(digit)

    def restore(self, digits: str) -> None:
        """Take keys that a former agent had before their turn was over. More may come; ``resume``
        makes a turn of them."""
        self._digits = digits

    def resume(self) -> bool:
        """Give the caller time for more keys; return False if there are none to make a turn of."""
        if self._digits and self._timer is None:
            self._keep(self._take())
        return bool(self._digits)

    def deafen(self, on: bool) -> None:
        """Ignore keys, and those that would become a turn now; or take them again."""
        self._deaf = on
        self._take()

    @contextmanager
    def asking(self, count: int, terminator: str, *, secret: bool = False) -> Iterator[Entry]:
        """Collect keys for an entry inside the block, with those pressed just before it.

        If the block raises (the caller interrupted), the keys become a turn, unless they are
        secret. Raises ActionFailed if another entry waits already.
        """
        if self._entry is not None:
            raise ActionFailed("keys are already being collected")
        entry = Entry(count, terminator, secret=secret)
        for digit in self._take().lstrip(terminator):
            entry.press(digit)
        self._entry = entry
        try:
            yield entry
        except BaseException:
            if not secret:
                self._keep(entry.digits)
            raise
        finally:
            self._entry = None

    def close(self) -> None:
        """Ignore keys from now on, because the call is over."""
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
            "secret": {
                "type": "boolean",
                "description": (
                    "True for card numbers, PINs and the like: nobody hears or records the keys, "
                    "and you get {{digits_1}} in place of them, which your tools understand as a "
                    "text of their arguments. Ask for nothing else until they are typed."
                ),
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
    secretly: Callable[[], AbstractContextManager[None]],
    secrets: Secrets,
    next_s: float = NEXT_S,
) -> str:
    """Run the tool: return the typed keys in words for an LLM, or the placeholder of secret ones.

    ``asked`` returns when the question has been spoken. Time-outs start then, but keys count from
    now. ``next_s`` is the time-out of each key but the first. ``secretly`` masks the call.
    Cancelling is safe: the keys become a turn, and secret ones are forgotten. Raises ActionFailed
    for wrong arguments, or if the tool runs already.
    """
    count = _number(arguments, "digits", None, MAX_KEYS)
    first_s = _number(arguments, "timeoutSeconds", _FIRST_S, 30)
    terminator = arguments.get("terminator", "#")
    if terminator not in ("#", "*", ""):
        raise ActionFailed("terminator is #, * or empty")
    secret = arguments.get("secret", False)
    if not isinstance(secret, bool):
        raise ActionFailed("secret is true or false")
    with (
        keypad.asking(count, terminator, secret=secret) as entry,
        secretly() if secret else nullcontext(),
    ):
        await _first_of(asked(), entry.completed())
        outcome = await entry.finish(first_s=first_s, next_s=next_s)
    if not entry.digits:
        return "The caller pressed no digits."
    typed = _in_words(entry, secrets)
    return f"The caller pressed {typed}" + (
        "." if outcome == "complete" else f", then nothing for {next_s:g} seconds."
    )


def _in_words(entry: Entry, secrets: Secrets) -> str:
    if not entry.secret:
        return entry.digits
    count = len(entry.digits)
    return f"{count} secret key{'s' if count > 1 else ''}, {secrets.keep(entry.digits)}"


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
