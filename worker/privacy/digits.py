"""Finds runs of digits in a transcript, written as digits or spoken as words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_WORDS = {
    "en": "zero|oh one two three four five six seven eight nine",
    "de": "null eins zwei|zwo drei vier fünf sechs sieben acht neun",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "it": "zero uno due tre quattro cinque sei sette otto nove",
    "pt": "zero um dois três quatro cinco seis|meia sete oito nove",
    "nl": "nul een|één twee drie vier vijf zes zeven acht negen",
}
"""The names of the digits 0 to 9 by language; ``|`` between two names of the same digit."""
_TIMES = {"double": 2, "triple": 3}
# Said between the digits of a number, which goes on afterwards.
_FILLERS = frozenset({"uh", "um", "er", "äh", "ähm", "euh", "eh"})

_TOKEN = re.compile(r"\d+|[^\W\d_]+")
# At most this much punctuation between two groups of one number: "4242-4242", "4242, 4242".
_BETWEEN = re.compile(r"[\s.,\-–/()]{0,3}")


def _names(language: str) -> dict[str, str]:
    chosen = _WORDS.get(language[:2].lower(), "")
    return {
        name: str(digit) for digit, names in enumerate(chosen.split()) for name in names.split("|")
    }


@dataclass(frozen=True, slots=True)
class Run:
    """Digits that follow each other; ``at[i]`` is the text's span that digit ``i`` is from.

    ``bounds`` are the places between digits where a group of digits, or a word, begins or ends.
    """

    digits: str
    at: tuple[tuple[int, int], ...]
    bounds: frozenset[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the text's span of the digits from ``start`` to before ``end``."""
        return self.at[start][0], self.at[end - 1][1]


def runs(text: str, language: str) -> Iterator[Run]:
    """Yield the runs of digits in ``text``, whose language is a BCP 47 tag.

    Words count only next to other digits: in "one moment" there is a run of one digit, which is
    no number of any kind.
    """
    names = _names(language)
    found: list[tuple[str, tuple[int, int]]] = []
    end = 0
    times, begin = 1, None  # a "double", and where it stands
    for token in _TOKEN.finditer(text):
        word = token[0].lower()
        near = _BETWEEN.fullmatch(text, end, token.start()) is not None
        if word in _FILLERS or (word in _TIMES and names):
            if word in _TIMES:
                times, begin = _TIMES[word], token.start()
            if near or not found:
                end = token.end()
                continue
        digits = token[0] if token[0].isdecimal() else names.get(word, "")
        if not (near and digits) and found:
            yield _run(found)
            found = []
        if digits:
            repeated = times if len(digits) == 1 else 1
            start = token.start() if begin is None or repeated == 1 else begin
            found.append((_ascii(digits) * repeated, (start, token.end())))
            end = token.end()
        times, begin = 1, None
    if found:
        yield _run(found)


def ends_in_digits(text: str, language: str) -> bool:
    """Return True if a number at the end of ``text`` may go on in what is said next."""
    end = max((run.at[-1][1] for run in runs(text, language)), default=None)
    if end is None:
        return False
    return all(token[0].lower() in _FILLERS for token in _TOKEN.finditer(text, end))


def _ascii(digits: str) -> str:
    return "".join(str(int(digit)) for digit in digits)


def _run(found: list[tuple[str, tuple[int, int]]]) -> Run:
    at: list[tuple[int, int]] = []
    bounds = {0}
    for digits, (start, end) in found:
        if len(digits) == end - start:  # written: each character is a digit
            at += [(place, place + 1) for place in range(start, end)]
        else:
            at += [(start, end)] * len(digits)
        bounds.add(len(at))
    return Run("".join(digits for digits, _ in found), tuple(at), frozenset(bounds))
