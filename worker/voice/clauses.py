"""A tokenizer that gives the TTS the first clause of an answer while the LLM still writes.

A TTS speaks sentence by sentence, and a long first sentence takes the LLM 200 ms and more to
write. With this tokenizer the first clause ("Of course, …") is spoken while the rest arrives;
whole sentences follow. It suits a TTS that continues in the same context (Cartesia's
``continue``), where the voice does not start anew after the clause.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from livekit.agents import tokenize
from livekit.agents.tokenize.tokenizer import SentenceStream

# Only before white space: 1,000 is one word.
_CLAUSE = re.compile(r"\s*[^\s].{2,}?[,;](?=\s)", re.DOTALL)
_LINES = re.compile(r"\s*\n+\s*")
_FINISHED = re.compile(r"[.!?…。！？][\"'”’»)\]]*\s*$")

# Characters before the text is first split, as in livekit-agents' own tokenizer.
_CONTEXT = 10


Piece = tuple[str, int, int]
"""The spoken text, and its start and end in the source text."""


class ClauseFirst(tokenize.SentenceTokenizer):
    """Splits sentences as livekit-agents' own tokenizer does, except a stream's first piece."""

    def __init__(self) -> None:
        # The format is retained so that the pieces add up to the text.
        self._sentences = tokenize.blingfire.SentenceTokenizer(retain_format=True)

    def tokenize(self, text: str, *, language: str | None = None) -> list[str]:
        return [piece for piece, _, _ in _placed(self._sentences.tokenize(text))]

    def stream(self, *, language: str | None = None) -> SentenceStream:
        return tokenize.token_stream.BufferedSentenceStream(
            tokenizer=_Splitter(self._sentences.tokenize), min_token_len=1, min_ctx_len=_CONTEXT
        )


class _Splitter:
    """Splits the text received so far; all pieces but the last are spoken at once."""

    def __init__(self, sentences: Callable[[str], list[str]]) -> None:
        self._sentences = sentences
        self._begun = False

    def __call__(self, text: str) -> list[Piece]:
        pieces = self._sentences(text)
        # A complete sentence, if already there, is better than a clause.
        if not self._begun and len(pieces) == 1 and not _FINISHED.search(text):
            clause = _CLAUSE.match(text)
            if clause:
                pieces = [clause[0], text[clause.end() :]]
        placed = _placed(pieces)
        self._begun = self._begun or len(placed) > 1
        return placed


def _placed(pieces: list[str]) -> list[Piece]:
    found, end = [], 0
    for piece in pieces:
        start, end = end, end + len(piece)
        if spoken := _LINES.sub(" ", piece).strip():
            found.append((spoken, start, end))
    return found
