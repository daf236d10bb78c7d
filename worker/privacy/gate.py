"""The one place that decides what of a call may be kept: its words, its keys and its audio.

Every event that holds words or keys is posted through the gate. While the gate is shut, such events
carry none, and the recorder writes silence. Audio and turns are judged later than they happen, so
the gate remembers when it was shut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from core.models import CallEvent, Turn
from worker.privacy.redactor import Redactor

Reason = Literal["consent", "paused", "masked"]


class Post(Protocol):
    def __call__(self, type: str, data: dict[str, Any], /) -> CallEvent: ...


Span = tuple[int, int | None]
"""From and to, in ms on the call's clock; None: the gate is still shut."""


class Gate:
    """It begins open. ``now_ms`` is the call's clock; it returns 0 before the answer.

    Several reasons may shut it at a time. It is open again when none is left.
    """

    def __init__(self, post: Post, now_ms: Callable[[], int]) -> None:
        self._post = post
        self._now_ms = now_ms
        self._reasons: set[Reason] = set()
        self._spans: list[Span] = []
        self.opened: list[Callable[[], None]] = []
        """Called each time the gate has opened."""
        self.redactor: Redactor | None = None
        """Removes personal data from what passes."""

    @property
    def is_open(self) -> bool:
        return not self._reasons

    def shut(self, why: Reason) -> None:
        if not self._reasons:
            self._spans.append((self._now_ms(), None))
        self._reasons.add(why)

    def open(self, why: Reason) -> None:
        if why not in self._reasons:
            return
        self._reasons.remove(why)
        if not self._reasons:
            begin, _ = self._spans[-1]
            self._spans[-1] = (begin, self._now_ms())
            for call in self.opened:
                call()

    def spans(self) -> Sequence[Span]:
        """Return when the gate was shut, in order."""
        return tuple(self._spans)

    def keeps(self, start_ms: int, end_ms: int) -> bool:
        """Return True if the gate was open from ``start_ms`` to ``end_ms``."""
        return not any(
            start <= end_ms and (end is None or start_ms < end) for start, end in self._spans
        )

    def post(self, type: str, data: dict[str, Any]) -> CallEvent:
        """Post an event without what may not be kept of it."""
        if type == "turn":
            return self._post(type, self._turn(Turn.model_validate(data)).wire())
        hides_keys = self.redactor is not None and self.redactor.hides_keys
        if _WORDS & data.keys() and (not self.is_open or (hides_keys and "digit" in data)):
            data = {name: data[name] for name in data if name not in _WORDS} | {"masked": True}
        elif self.redactor is not None:
            cut = self.redactor.text
            data = data | {name: cut(data[name]) for name in _TEXTS & data.keys()}
        return self._post(type, data)

    def _turn(self, turn: Turn) -> Turn:
        times = (turn.start_ms, turn.end_ms, turn.response_start_ms, turn.response_end_ms)
        known = [time for time in times if time is not None]
        # A turn without times was said around now.
        begin, end = (min(known), max(known)) if known else (self._now_ms(), self._now_ms())
        if self.keeps(begin, end):
            return turn if self.redactor is None else self.redactor.turn(turn)
        without = {"transcript": "", "response": "", "words": [], "response_words": []}
        return turn.model_copy(update={**without, "masked": True})


_TEXTS = frozenset({"evidence", "heard", "text"})
_WORDS = _TEXTS | {"digit"}
"""The fields of events that hold words or keys."""
