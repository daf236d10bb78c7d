"""When to begin to speak what has come of a text so far.

Text that comes piece by piece is spoken in phrases. A TTS waits with a sentence for the words
after it, which may be seconds away: a phrase ends where the next piece keeps it waiting, or
with a piece that is a sentence or more by itself. Within a stream of single words, sentences
are left to the TTS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from livekit.agents import FlushSentinel

PAUSE_S = 0.25
"""More than lies between the words of a model, less than a caller notices."""

_ENDS = frozenset(".!?…")
_ENDS_ALWAYS = frozenset("。！？")  # where words are not set apart, and no abbreviation ends so


async def in_phrases(
    pieces: AsyncIterator[str], pause_s: float = PAUSE_S
) -> AsyncGenerator[str | FlushSentinel, None]:
    """``pieces``, with a FlushSentinel after each phrase that more may follow.

    Pieces without a letter or digit wait for some: a TTS that has nothing to say is taken for
    broken. Closing the generator cancels the wait for the next piece.
    """
    held = ""  # nothing in it that can be spoken
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
                # Two phrases are two utterances, however they were glued.
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
