"""The one place that decides what of a call may be kept: its words, its keys and its audio.

Every event that holds words or keys is posted through the gate. While the gate is shut, such events
carry none, and the recorder writes silence. Audio and turns are judged later than they happen, so
the gate remembers when it was shut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol

from core.models import CallEvent, Turn, Word
from worker.privacy.redactor import Redactor

Reason = Literal["consent", "paused", "masked"]

HELD_S = 30.0
"""A number that goes on later than this is not recognised."""

_WORD_OFF_MS: Final = 500
"""The time of a word may be wrong by this much: many share the time of their neighbours."""


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
        self._releasing: asyncio.TimerHandle | None = None
        self._seen_ms: dict[str, int] = {}  # when a turn without times came first
        self._masked = False  # the last turn

    @property
    def is_open(self) -> bool:
        return not self._reasons

    def is_shut_for(self, why: Reason) -> bool:
        return why in self._reasons

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

    def post(self, type: str, data: dict[str, Any]) -> None:
        """Post an event without what may not be kept of it. A turn may be posted later."""
        if type == "turn":
            return self._turn(Turn.model_validate(data))
        shut = not self.is_open or (type == "barge_in" and self._masked)
        hides_keys = self.redactor is not None and self.redactor.hides_keys
        if _WORDS & data.keys() and (shut or (hides_keys and "digit" in data)):
            data = {name: data[name] for name in data if name not in _WORDS} | {"masked": True}
        elif self.redactor is not None:
            cut = self.redactor.text
            data = data | {name: cut(data[name]) for name in _TEXTS & data.keys()}
        self._post(type, data)

    def kept(self, value: Any) -> Any:
        """Return what may be kept of a JSON value that the agent made of what it has heard; None:
        nothing, since the gate is shut, or was while the caller said their last turn."""
        if not self.is_open or self._masked:
            return None
        return value if self.redactor is None else self.redactor.value(value)

    def busy(self, who: str, busy: bool) -> None:
        """Note that the caller or the agent starts or stops speaking."""
        if self.redactor is not None:
            self.redactor.busy(who, busy)

    def close(self) -> None:
        """Post the rest. The call's last turn was posted."""
        if self.redactor is None:
            return
        self._tell(self.redactor.rest())
        if counts := self.redactor.counts:
            self._post("redaction.applied", {"counts": counts})

    def _turn(self, turn: Turn) -> None:
        turn = self._kept(turn)
        self._masked = turn.masked
        redactor = self.redactor
        if redactor is None:
            return self._tell([turn])
        self._tell(redactor.turn(turn))
        if redactor.holds:
            loop = asyncio.get_running_loop()
            self._releasing = loop.call_later(HELD_S, lambda: self._tell(redactor.rest()))

    def _tell(self, turns: Sequence[Turn]) -> None:
        if self._releasing is not None:
            self._releasing.cancel()
            self._releasing = None
        for turn in turns:
            self._post("turn", turn.wire())

    def _kept(self, turn: Turn) -> Turn:
        """Return the turn without the words that were said while the gate was shut."""
        seen_ms = self._seen_ms.setdefault(turn.id, self._now_ms())
        times = (turn.start_ms, turn.end_ms)
        said, words = self._passing(turn.transcript, turn.words, times, seen_ms)
        times = (turn.response_start_ms, turn.response_end_ms)
        response, response_words = self._passing(turn.response, turn.response_words, times, seen_ms)
        if (said, response) == (turn.transcript, turn.response):
            return turn
        kept = {
            "transcript": said,
            "words": words,
            "response": response,
            "response_words": response_words,
            "masked": True,
        }
        return turn.model_copy(update=kept)

    def _passing(
        self, text: str, words: list[Word], times: tuple[int | None, int | None], seen_ms: int
    ) -> tuple[str, list[Word]]:
        """Return what may be kept of a text and its words. Without times, it was said when it was
        seen first."""
        known = [time for time in times if time is not None]
        begin, end = (min(known), max(known)) if known else (seen_ms, seen_ms)
        if self.keeps(begin, end):
            return text, words
        off = _WORD_OFF_MS
        kept = [
            word for word in words if known and self.keeps(word.start_ms - off, word.end_ms + off)
        ]
        return " ".join(word.text for word in kept), kept


_TEXTS = frozenset({"evidence", "heard", "text"})
_WORDS = _TEXTS | {"digit"}
"""The fields of events that hold words or keys."""
