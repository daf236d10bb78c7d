"""Splits text that arrives in pieces into phrases that the TTS speaks at once.

A TTS speaks a sentence only when it has the words after it, which may be seconds away. So a
phrase ends where the next piece does not come in time, or after a piece that is at least a whole
sentence. In a stream of single words, the TTS finds the sentences.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from livekit.agents import FlushSentinel

PAUSE_S = 0.25
"""Longer than the gaps between an LLM's words, shorter than a caller notices."""

_ENDS = frozenset(".!?…")
_ENDS_ALWAYS = frozenset("。！？")  # scripts without spaces, where no abbreviation ends like this


async def in_phrases(
    pieces: AsyncIterator[str], pause_s: float = PAUSE_S
) -> AsyncGenerator[str | FlushSentinel, None]:
    """Yield ``pieces``, with a FlushSentinel after each phrase that more may follow.

    Pieces without a letter or digit are held until one has some, because a TTS with nothing to say
    is taken for broken. Closing the generator cancels the wait for the next piece.
    """
    held = ""  # unspeakable so far
    open_phrase = spoken = False
    reading = _next(pieces)
    try:
        while True:
            if open_phrase:
                await asyncio.wait({reading}, timeout=pause_s)
                if not reading.done():
                    yield FlushSentinel()
                    open_phrase = False
            piece = await reading
            if piece is None:
                return
            reading = _next(pieces)
            held += piece
            if not open_phrase and not any(character.isalnum() for character in held):
                continue
            if not open_phrase and spoken and not held[0].isspace():
                # Separate phrases are separate utterances, even without a space between them.
                held = f" {held}"
            yield held
            open_phrase = spoken = True
            held = ""
            if _is_sentence(piece):
                yield FlushSentinel()
                open_phrase = False
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _is_sentence(piece: str) -> bool:
    end = piece.rstrip().rstrip("\"'”’»)]")[-1:]
    return end in _ENDS_ALWAYS or (end in _ENDS and len(piece.split()) > 1)


def _next(pieces: AsyncIterator[str]) -> asyncio.Task[str | None]:
    async def read() -> str | None:
        return await anext(pieces, None)

    return asyncio.create_task(read(), name="next words")
