"""The conversation that is measured: answers that are heard whole, run dry, and are cut off.

Each answer is one clause, so that the TTS makes it in one piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from dev.alignment.far_ends import FarEnd
from dev.providers import Cartesia, Control, Deepgram, OpenAI, Rule, Script

GREETING: Final = "Hello and welcome to the restaurant on the corner."
QUESTION: Final = "what are your opening hours"
ANSWER: Final = "We are open from five in the afternoon until late at night every day but Monday."
INTERRUPTION: Final = "no wait I meant tomorrow"
SHORT: Final = "Tomorrow we open at noon and close at midnight."
SPOKEN: Final = (GREETING, ANSWER, SHORT)
ROUND: Final = 4
"""The turns of a round."""

_CUT_AFTER_S = 1.3
_DRY_PIECE_MS, _DRY_SPEED = 600.0, 0.7  # each piece of the voice comes 260 ms too late

SetControl = Callable[[Control], Awaitable[None]]


def control(*, dry: bool = False) -> Control:
    """Return the providers' configuration. ``dry``: the TTS is slower than its audio."""
    rules = [Rule(equals=QUESTION, reply=ANSWER), Rule(equals=INTERRUPTION, reply=SHORT)]
    return Control(
        deepgram=Deepgram(phrases=[QUESTION, INTERRUPTION]),
        openai=OpenAI(scripts={"default": Script(rules=rules)}),
        cartesia=Cartesia(chunk_ms=_DRY_PIECE_MS, speed=_DRY_SPEED) if dry else Cartesia(),
    )


async def converse(end: FarEnd, set_control: SetControl) -> None:
    """Hold a round of turns. Raise TimeoutError if an answer does not come."""
    await _ask(end)
    await set_control(control(dry=True))
    try:
        await _ask(end)
    finally:
        await set_control(control())
    await end.say(QUESTION)
    await end.hears()
    await asyncio.sleep(_CUT_AFTER_S)
    await end.say(INTERRUPTION)
    await end.hears()
    await end.quiet()


async def _ask(end: FarEnd) -> None:
    await end.say(QUESTION)
    await end.hears()
    await end.quiet()
