"""Gives the words of a text the times that a provider reported for the words it heard or spoke."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

# The two texts have little in common: the times belong to other words.
_LEAST_COMMON = 0.5
_SIGNS = re.compile(r"\W+")


class Timed(NamedTuple):
    """A word or more, from ``start`` to ``end``."""

    text: str
    start: float
    end: float


def timed_words(text: str, reported: Sequence[Timed]) -> list[Timed]:
    """Return the words of ``text``, in order, each with its time.

    The text may be written differently from what was reported ("25" for "twenty five"), and holds
    a part of it only if speech was cut. Words between two that are found share the time between
    them. Returns an empty list if the times belong to another text.
    """
    words = text.split()
    reported = [one for one in reported if one.text.strip()]
    matcher = SequenceMatcher(
        None, [_key(word) for word in words], [_key(one.text) for one in reported], autojunk=False
    )
    timed: list[Timed] = []
    common = 0
    for kind, begin, end, reported_begin, reported_end in matcher.get_opcodes():
        matching = reported[reported_begin:reported_end]
        if kind == "equal":
            common += end - begin
            timed += [
                Timed(word, one.start, one.end)
                for word, one in zip(words[begin:end], matching, strict=True)
            ]
        elif kind == "replace":
            timed += _spread(words[begin:end], matching[0].start, matching[-1].end)
        elif kind == "delete":
            before = timed[-1].end if timed else reported[0].start if reported else 0.0
            after = reported[reported_begin].start if reported_begin < len(reported) else before
            timed += _spread(words[begin:end], before, max(before, after))
    return timed if common >= _LEAST_COMMON * len(words) else []


def _spread(words: Sequence[str], start: float, end: float) -> list[Timed]:
    each = (end - start) / len(words)
    return [
        Timed(word, start + number * each, start + (number + 1) * each)
        for number, word in enumerate(words)
    ]


def _key(word: str) -> str:
    word = word.strip().casefold()
    return _SIGNS.sub("", word) or word
