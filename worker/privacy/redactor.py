"""Removes personal data from a call's turns, and tells what to silence on its recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import phonenumbers

from core.jobs import CallBrief
from core.models import Turn, Word
from core.recordings.config import Kind
from worker.privacy.redaction import Finder, Found
from worker.privacy.silencer import Silencer
from worker.privacy.values import texts_in, with_each_text

_MOST_HELD: Final = 20  # turns

Side = Literal["transcript", "response"]


@dataclass(frozen=True, slots=True)
class _Piece:
    """``text[start:end]`` is data of this kind; ``first``: it begins here, and is counted here."""

    kind: Kind
    start: int
    end: int
    first: bool


class Redactor:
    """Redacts the turns of one call. ``silencer`` silences the recording; None: its audio stays as
    it is.

    A caller may say a number in several turns, so turns are held back while the last of them ends
    in digits. Once posted, a turn may come again with more of its answer. What was found in it is
    remembered, since its next turns are not looked at again.
    """

    def __init__(self, finder: Finder, silencer: Silencer | None = None) -> None:
        self._finder = finder
        self.silencer = silencer
        self._held: dict[str, Turn] = {}
        self._pieces: dict[tuple[str, Side], list[_Piece]] = {}

    @property
    def counts(self) -> dict[str, int]:
        """How many pieces of each kind were removed; never the data itself."""
        every = (piece for pieces in self._pieces.values() for piece in pieces)
        return dict(sorted(Counter(piece.kind for piece in every if piece.first).items()))

    @property
    def hides_keys(self) -> bool:
        """True if pressed keys may be a number of a kind that is removed: each is an event of its
        own, so they cannot be judged together."""
        return self._finder.finds_numbers

    @property
    def holds(self) -> bool:
        """True while turns are held back."""
        return bool(self._held)

    def busy(self, who: str, busy: bool) -> None:
        """Note that the caller or the agent starts or stops speaking."""
        if self.silencer is not None:
            self.silencer.busy(who, busy)

    def turn(self, turn: Turn) -> list[Turn]:
        """Take a turn. Return those that can be posted now, without what was found in them."""
        self._held[turn.id] = turn
        goes_on = self._finder.goes_on(_joined(self._held.values()))
        if self.silencer is not None and turn.end_ms is not None:
            self.silencer.told(turn.end_ms)
        if not goes_on or len(self._held) >= _MOST_HELD:
            return self.rest()
        if self.silencer is not None:
            held = self._held.values()
            begins = [time for each in held for time in (each.start_ms, each.response_start_ms)]
            known = [time for time in begins if time is not None]
            self.silencer.held_ms = min(known, default=None)
        return []

    def rest(self) -> list[Turn]:
        """Return the turns that are held back, without what was found in them."""
        turns = list(self._held.values())
        self._held.clear()
        if self.silencer is not None:
            self.silencer.held_ms = None
        self._find(turns)
        return [self._without(turn) for turn in turns]

    def text(self, text: str) -> str:
        """Return other text of the call without what is found in it. It is not counted."""
        return _cut(text, self._finder.find(text))

    def value(self, value: Any) -> Any:
        """Return a JSON value without what is found in its texts and numbers; None: something is
        spread over several of them. It is not counted."""
        cut = with_each_text(value, self.text)
        every = " ".join(texts_in(cut))
        return cut if self.text(every) == every else None

    def _find(self, turns: Sequence[Turn]) -> None:
        """Look at what the caller said in all turns together, and at each answer by itself."""
        found = self._finder.find(_joined(turns))
        at = 0
        for turn in turns:
            end = at + len(turn.transcript)
            for each in found:
                if max(each.start, at) < min(each.end, end):
                    start, stop = max(each.start, at) - at, min(each.end, end) - at
                    piece = _Piece(each.kind, start, stop, first=each.start >= at)
                    self._remember(turn, "transcript", piece)
            for each in self._finder.find(turn.response):
                piece = _Piece(each.kind, each.start, each.end, first=True)
                self._remember(turn, "response", piece)
            at = end + bool(turn.transcript)

    def _remember(self, turn: Turn, side: Side, piece: _Piece) -> None:
        pieces = self._pieces.setdefault((turn.id, side), [])
        for known in [each for each in pieces if each.start < piece.end and piece.start < each.end]:
            pieces.remove(known)
            start, end = min(known.start, piece.start), max(known.end, piece.end)
            piece = replace(known, start=start, end=end)
        pieces.append(piece)
        pieces.sort(key=lambda each: each.start)

    def _without(self, turn: Turn) -> Turn:
        said = self._pieces.get((turn.id, "transcript"))
        answered = self._pieces.get((turn.id, "response"))
        changes: dict[str, object] = {}
        if said:
            words = self._words(turn.transcript, turn.words, said, (turn.start_ms, turn.end_ms))
            changes |= {"transcript": _cut(turn.transcript, said), "words": words}
        if answered:
            times = (turn.response_start_ms, turn.response_end_ms)
            words = self._words(turn.response, turn.response_words, answered, times)
            changes |= {"response": _cut(turn.response, answered), "response_words": words}
        return turn.model_copy(update=changes) if changes else turn

    def _words(
        self,
        text: str,
        words: Sequence[Word],
        pieces: Sequence[_Piece],
        times: tuple[int | None, int | None],
    ) -> list[Word]:
        """Return the words without the pieces, and silence these. ``times``: those of the text."""
        placed = _placed(text, words)
        if not placed:  # it is unknown when the words were said
            self._silence(*times)
        left = [word for word, start, end in placed if not _in(pieces, start, end)]
        for piece in pieces:
            gone = [word for word, start, end in placed if _in([piece], start, end)]
            if gone:
                begin, end = gone[0].start_ms, gone[-1].end_ms
                self._silence(begin, end)
                left.append(Word(text=f"[{piece.kind}]", start_ms=begin, end_ms=end))
        return sorted(left, key=lambda word: word.start_ms)

    def _silence(self, start_ms: int | None, end_ms: int | None) -> None:
        if self.silencer is not None and start_ms is not None and end_ms is not None:
            self.silencer.silence(start_ms, end_ms)


def _joined(turns: Iterable[Turn]) -> str:
    """Return what the caller said in all turns."""
    return " ".join(turn.transcript for turn in turns if turn.transcript)


def _in(pieces: Iterable[_Piece], start: int, end: int) -> bool:
    return any(piece.start < end and start < piece.end for piece in pieces)


def _cut(text: str, found: Sequence[Found | _Piece]) -> str:
    parts, at = [], 0
    for each in found:
        parts += [text[at : each.start], f"[{each.kind}]"]
        at = each.end
    return "".join([*parts, text[at:]])


def _placed(text: str, words: Sequence[Word]) -> list[tuple[Word, int, int]]:
    """Return the words with their places in ``text``; empty if they are not those of the text."""
    placed, at = [], 0
    for word in words:
        start = text.find(word.text, at)
        if start < 0:
            return []
        at = start + len(word.text)
        placed.append((word, start, at))
    return placed


def redactor_of(brief: CallBrief, now_ms: Callable[[], int]) -> Redactor | None:
    """Return what removes the data that the call's agent does not want kept; None: it keeps all.

    ``now_ms`` is the call's clock.
    """
    config = brief.agent.config
    if not config.redaction.kinds:
        return None
    far_end = brief.from_number if brief.direction == "inbound" else brief.to_number
    finder = Finder(config.redaction.kinds, language=config.language, country=_country(far_end))
    silences = config.redaction.audio and brief.recording is not None
    return Redactor(finder, Silencer(now_ms) if silences else None)


def _country(number: str | None) -> str | None:
    try:
        found = phonenumbers.region_code_for_number(phonenumbers.parse(number or "", None))
    except phonenumbers.NumberParseException:
        return None
    return found if found and len(found) == 2 else None
