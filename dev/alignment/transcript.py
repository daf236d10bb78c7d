"""Finds how far a transcript's times are from where the far end said and heard its turns."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from core.audio import Pcm
from core.models import Turn, Word
from dev.alignment.far_ends import PAUSE_MS, FarSide
from dev.alignment.offsets import FAR_RATE
from dev.speech import AGENT_VOICE, CALLER_VOICE, Speech, Voice, normalize, synthesize
from dev.speech.holes import PIECE_MS, find_pieces
from dev.speech.listen import Segment, speech_bounds, voiced_segments

_A_MS = FAR_RATE // 1000  # samples
_JUMP = 30 * _A_MS

Located: TypeAlias = tuple[str, float, float]
"""A word, and where the far end has it (ms)."""


@dataclass(frozen=True, slots=True)
class Errors:
    """How much later the transcript has each boundary of a turn, and each word's, in ms.

    ``unmatched``: texts that the transcript and the far end do not both have.
    """

    boundaries: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a turn in the transcript, in ms of the far end's clock."""

    text: str
    start_ms: float
    end_ms: float
    words: list[Located]


def errors(far: FarSide, turns: Sequence[Turn], origin_ms: float, answers: Iterable[str]) -> Errors:
    """Compare. The call's clock is ``origin_ms`` ahead of the far end's. ``answers``: what the
    agent may have said, each text without a pause."""

    def there(ms: float) -> float:
        return (ms - origin_ms) * far.pace

    def side(text: str, start_ms: int | None, end_ms: int | None, words: list[Word]) -> _Side:
        assert start_ms is not None and end_ms is not None, text
        located = [(word.text, there(word.start_ms), there(word.end_ms)) for word in words]
        return _Side(text, there(start_ms), there(end_ms), located)

    found = Errors()
    said = [side(t.transcript, t.start_ms, t.end_ms, t.words) for t in turns if t.transcript]
    heard = [
        side(t.response, t.response_start_ms, t.response_end_ms, t.response_words)
        for t in turns
        if t.response
    ]
    segments = voiced_segments(far.said, FAR_RATE, hangover_ms=PAUSE_MS)
    assert len(segments) == len(far.texts), "each text is one stretch of voice"
    texts = dict(zip(segments, far.texts, strict=True))
    _compare(said, segments, lambda segment, _: _words_said(texts[segment], segment), found)
    segments = voiced_segments(far.heard, FAR_RATE, hangover_ms=PAUSE_MS)
    _compare(heard, segments, partial(_words_heard, far.heard, list(answers)), found)
    return found


def _compare(
    sides: Sequence[_Side],
    segments: Sequence[Segment],
    words: Callable[[Segment, str], list[Located]],
    into: Errors,
) -> None:
    left = list(segments)
    for side in sides:
        match = max(left, key=lambda segment: _overlap(side, segment), default=None)
        if match is None or _overlap(side, match) <= 0:
            into.unmatched.append(side.text)
            continue
        left.remove(match)
        into.boundaries.extend((side.start_ms - match.start_ms, side.end_ms - match.end_ms))
        located = words(match, side.text)
        written = [normalize(word) for word in side.text.split()]
        there = [normalize(word) for word, *_ in located[: len(written)]]
        if not [normalize(word) for word, *_ in side.words] == written == there:
            into.unmatched.append(f"the words of {side.text!r}")
            continue
        for (_, start, end), (_, true_start, true_end) in zip(side.words, located, strict=False):
            into.words.extend((start - true_start, end - true_end))
    into.unmatched.extend(f"{each.start_ms:.0f} to {each.end_ms:.0f} ms" for each in left)


def _overlap(side: _Side, segment: Segment) -> float:
    return min(side.end_ms, segment.end_ms) - max(side.start_ms, segment.start_ms)


def _words_said(text: str, segment: Segment) -> list[Located]:
    speech, voice = _spoken(text, CALLER_VOICE)
    moved = segment.start_ms - voice.start_ms
    return [(word.word, word.start_ms + moved, word.end_ms + moved) for word in speech.words]


def _words_heard(heard: Pcm, answers: Sequence[str], segment: Segment, text: str) -> list[Located]:
    """Locate the words of the answer that begins with ``text``, as far as they were heard."""
    answer = next((each for each in answers if normalize(each).startswith(normalize(text))), None)
    if answer is None:
        return []
    speech, voice = _spoken(answer, AGENT_VOICE)
    delays = list(
        _delays(
            heard[round(segment.start_ms * _A_MS) : round(segment.end_ms * _A_MS)],
            speech.pcm[round(voice.start_ms * _A_MS) :],
        )
    )
    if not delays:
        return []

    def located(ms: float, find: Callable[[list[float], float], int]) -> float:
        at = ms - voice.start_ms
        begun = find([begin for begin, _ in delays], at)
        return segment.start_ms + at + delays[max(0, begun - 1)][1]

    return [
        (word.word, located(word.start_ms, bisect_right), located(word.end_ms, bisect_left))
        for word in speech.words
    ]


def _delays(heard: Pcm, spoken: Pcm) -> Iterator[tuple[float, float]]:
    """Yield positions of ``spoken`` and how much later it was heard from there on, both in ms."""
    before: tuple[int, int] | None = None
    for at, there in find_pieces(heard, spoken, FAR_RATE):
        begin = at
        if before is not None and abs(there - at - before[1]) > _JUMP:
            # The delay changed somewhere between the beginnings of both pieces and the last's end.
            span = slice(before[0], at + PIECE_MS * _A_MS)
            early, late = (_error(heard, spoken, span, shift) for shift in (before[1], there - at))
            begin = span.start + int(np.argmin(early.cumsum() - late.cumsum())) + 1
        before = at, there - at
        yield begin / _A_MS, (there - at) / _A_MS


def _error(heard: Pcm, spoken: Pcm, span: slice, shift: int) -> npt.NDArray[np.float64]:
    """Return how much ``heard`` differs at each position of a span if it is ``shift`` later."""
    wanted = spoken[span].astype(np.float64)
    there = np.zeros(len(wanted))
    first = max(0, span.start + shift)
    part = heard[first : span.start + shift + len(wanted)]
    there[first - span.start - shift :][: len(part)] = part
    result: npt.NDArray[np.float64] = (wanted - there) ** 2
    return result


def _spoken(text: str, voice: Voice) -> tuple[Speech, Segment]:
    """Return a text's speech, and where its voice is."""
    speech = synthesize(text, voice, FAR_RATE)
    bounds = speech_bounds(speech.pcm, FAR_RATE)
    assert bounds is not None, text
    return speech, bounds
