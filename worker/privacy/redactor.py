"""Removes personal data from a call's turns, and tells what to silence on its recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import phonenumbers

from core.jobs import CallBrief
from core.models import Turn, Word
from core.recordings.config import Kind
from worker.privacy.redaction import Finder, Found


@dataclass(frozen=True, slots=True)
class Text:
    """A turn's words of one side, ``said`` between the two times if they are known."""

    text: str
    words: Sequence[Word]
    start_ms: int | None
    end_ms: int | None


class Redactor:
    """``blank(from_ms, to_ms)`` silences the recording; None: its audio stays as it is.

    A turn is posted several times with more of its answer; its data is counted once.
    """

    def __init__(self, finder: Finder, blank: Callable[[int, int], None] | None = None) -> None:
        self._finder = finder
        self.blank = blank
        self._by_turn: dict[str, Counter[Kind]] = {}

    @property
    def counts(self) -> dict[str, int]:
        """How many pieces of each kind were removed; never the data itself."""
        total: Counter[Kind] = Counter()
        for counts in self._by_turn.values():
            total += counts
        return dict(sorted(total.items()))

    @property
    def hides_keys(self) -> bool:
        """True if pressed keys may be a number of a kind that is removed: each is an event of its
        own, so they cannot be judged together."""
        return self._finder.finds_numbers

    def turn(self, turn: Turn) -> Turn:
        """Return the turn without what was found in it."""
        counts: Counter[Kind] = Counter()
        said, words = self._side(
            Text(turn.transcript, turn.words, turn.start_ms, turn.end_ms), counts
        )
        response, response_words = self._side(
            Text(turn.response, turn.response_words, turn.response_start_ms, turn.response_end_ms),
            counts,
        )
        self._by_turn[turn.id] = counts
        if not counts:
            return turn
        return turn.model_copy(
            update={
                "transcript": said,
                "words": words,
                "response": response,
                "response_words": response_words,
            }
        )

    def text(self, text: str) -> str:
        """Return other text of the call without what is found in it. It is not counted."""
        return _cut(text, self._finder.find(text))

    def _side(self, side: Text, counts: Counter[Kind]) -> tuple[str, list[Word]]:
        found = self._finder.find(side.text)
        if not found:
            return side.text, list(side.words)
        counts.update(each.kind for each in found)
        placed = _placed(side.text, side.words)
        words: list[Word] = []
        for word, start, end in placed:
            hit = next((each for each in found if each.start < end and start < each.end), None)
            if hit is None:
                words.append(word)
                continue
            self._silence(word.start_ms, word.end_ms)
            name = f"[{hit.kind}]"
            if words and words[-1].text == name and start > hit.start:
                name, begin = words[-1].text, words.pop().start_ms
                words.append(Word(text=name, start_ms=begin, end_ms=word.end_ms))
            else:
                words.append(word.model_copy(update={"text": name}))
        if not placed and side.start_ms is not None and side.end_ms is not None:
            # It is unknown when the words were said.
            self._silence(side.start_ms, side.end_ms)
        return _cut(side.text, found), words

    def _silence(self, start_ms: int, end_ms: int) -> None:
        if self.blank is not None:
            self.blank(start_ms, end_ms)


def _cut(text: str, found: Sequence[Found]) -> str:
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


def redactor_of(brief: CallBrief) -> Redactor | None:
    """Return what removes the data that the call's agent does not want kept; None: it keeps all."""
    config = brief.agent.config
    if not config.redaction.kinds:
        return None
    far_end = brief.from_number if brief.direction == "inbound" else brief.to_number
    finder = Finder(config.redaction.kinds, language=config.language, country=_country(far_end))
    return Redactor(finder)


def _country(number: str | None) -> str | None:
    try:
        found = phonenumbers.region_code_for_number(phonenumbers.parse(number or "", None))
    except phonenumbers.NumberParseException:
        return None
    return found if found and len(found) == 2 else None
