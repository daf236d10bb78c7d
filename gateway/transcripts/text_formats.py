"""A call's transcript as WebVTT (https://www.w3.org/TR/webvtt1/) and as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from core.models import Turn, Word

Speaker = Literal["Caller", "Agent"]

CUE_MS: Final = 7_000
"""The longest cue, as far as the words' times are known: more than two lines of subtitles."""

_LEAST_MS = 1  # a cue ends after it starts
# Control characters, of which NUL is not allowed in WebVTT, and all that ends a line or moves text.
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@dataclass(frozen=True, slots=True)
class Utterance:
    """The words of one side of a turn, in ms on the call's clock; None: unknown."""

    speaker: Speaker
    text: str
    start_ms: int | None
    end_ms: int | None
    words: Sequence[Word] = ()


@dataclass(frozen=True, slots=True)
class _Cue:
    speaker: Speaker
    text: str
    start_ms: int
    end_ms: int


def vtt(turns: Iterable[Turn]) -> str:
    """Return the transcript as WebVTT. Utterances without times have no cue."""
    blocks = ["WEBVTT"]
    # Cues that overlap, because a long one was split, have to be in order of their start, too.
    for cue in sorted(_cues(utterances(turns)), key=lambda cue: cue.start_ms):
        end_ms = max(cue.end_ms, cue.start_ms + _LEAST_MS)
        times = f"{_clock(cue.start_ms)} --> {_clock(end_ms)}"
        blocks.append(f"{times}\n<v {cue.speaker}>{cue.text.translate(_ESCAPES)}")
    return "\n\n".join(blocks) + "\n"


def text(turns: Iterable[Turn]) -> str:
    """Return the transcript as lines: when it began (mm:ss), who said it, and the words."""
    return "".join(
        f"{_minutes(said.start_ms)} {said.speaker}: {said.text}\n" for said in utterances(turns)
    )


def utterances(turns: Iterable[Turn]) -> list[Utterance]:
    """Return what was said, in the order in which it began."""
    said: list[Utterance] = []
    for turn in turns:
        caller = Utterance("Caller", turn.transcript, turn.start_ms, turn.end_ms, turn.words)
        agent = Utterance(
            "Agent",
            turn.response,
            turn.response_start_ms,
            turn.response_end_ms,
            turn.response_words,
        )
        said += [_on_one_line(part) for part in (caller, agent) if _line(part.text)]
    # One without a time stays after the one before it.
    begins: list[int] = []
    for part in said:
        before = begins[-1] if begins else 0
        begins.append(before if part.start_ms is None else part.start_ms)
    return [part for _, _, part in sorted(zip(begins, range(len(said)), said, strict=True))]


def _on_one_line(said: Utterance) -> Utterance:
    return Utterance(said.speaker, _line(said.text), said.start_ms, said.end_ms, said.words)


def _line(spoken: str) -> str:
    return _BLANK.sub(" ", spoken).strip()


def _cues(said: Iterable[Utterance]) -> Iterator[_Cue]:
    for utterance in said:
        if utterance.start_ms is None or utterance.end_ms is None:
            continue
        if utterance.end_ms - utterance.start_ms <= CUE_MS or not utterance.words:
            yield _Cue(utterance.speaker, utterance.text, utterance.start_ms, utterance.end_ms)
        else:
            yield from _split(utterance)


def _split(said: Utterance) -> Iterator[_Cue]:
    part: list[Word] = []
    for word in said.words:
        if part and word.end_ms - part[0].start_ms > CUE_MS:
            yield _cue(said.speaker, part)
            part = []
        part.append(word)
    yield _cue(said.speaker, part)


def _cue(speaker: Speaker, words: Sequence[Word]) -> _Cue:
    spoken = _line(" ".join(word.text for word in words))
    return _Cue(speaker, spoken, words[0].start_ms, words[-1].end_ms)


def _clock(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}.{ms:03}"


def _minutes(ms: int | None) -> str:
    if ms is None:
        return "--:--"
    minutes, seconds = divmod(ms // 1000, 60)
    return f"{minutes:02}:{seconds:02}"
