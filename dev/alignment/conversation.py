"""The conversation that is measured: answers that are heard whole, run dry, and are cut off; holds.

Each answer is one clause, so that the TTS makes it in one piece.
"""

from __future__ import annotations

import asyncio
from typing import Final

from dev.alignment.far_ends import FarEnd, PhoneEnd
from dev.providers import Cartesia, Control, Deepgram, OpenAI, Pace, Rule, Script, ToolCall

GREETING: Final = "Hello and welcome to the restaurant on the corner."
QUESTION: Final = "what are your opening hours"
ANSWER: Final = "We are open from five in the afternoon until late at night every day but Monday."
TABLE: Final = "is there a table by the window"
DRY: Final = "By the window there are two tables for four people and a large one for eight."
INTERRUPTION: Final = "no wait I meant tomorrow"
SHORT: Final = "Tomorrow we open at noon and close at midnight."
CONNECT: Final = "please connect me to the manager"
WAITING: Final = "hello can anybody hear me"
"""The caller says it on hold."""
SORRY: Final = "I am sorry but the manager cannot come to the phone right now."
REPEAT: Final = "Please say that once more."
SPOKEN: Final = (GREETING, ANSWER, DRY, SHORT, SORRY, REPEAT)
ROUND: Final = 4
"""The turns of a round."""

_CUT_AFTER_S = 1.3
_DRY = Pace(chunk_ms=600.0, speed=0.7)  # each piece of the voice comes 260 ms too late
_APART_MS = 1500.0  # between the hold music and words, longer than any pause within words


def control() -> Control:
    """Return the providers' configuration."""
    rules = [
        Rule(equals=QUESTION, reply=ANSWER),
        Rule(equals=TABLE, reply=DRY),
        Rule(equals=INTERRUPTION, reply=SHORT),
        Rule(equals=CONNECT, call=ToolCall(name="transfer_call"), delay_ms=_APART_MS),
        Rule(role="tool", tool_name="transfer_call", reply=SORRY, delay_ms=_APART_MS),
    ]
    return Control(
        deepgram=Deepgram(phrases=[QUESTION, TABLE, INTERRUPTION, CONNECT, WAITING]),
        openai=OpenAI(scripts={"default": Script(rules=rules, default=REPEAT)}),
        cartesia=Cartesia(paces={DRY: _DRY}),
    )


async def converse(end: FarEnd) -> None:
    """Hold a round of turns. Raise TimeoutError if an answer does not come."""
    for question in (QUESTION, TABLE):
        await end.say(question)
        await end.hears()
        await end.quiet()
    await end.say(QUESTION)
    await end.hears()
    await asyncio.sleep(_CUT_AFTER_S)
    await end.say(INTERRUPTION)
    await end.hears()
    await end.quiet()


async def hold(end: PhoneEnd) -> None:
    """Ask for a human, who declines, so that the agent comes back. Raise TimeoutError."""
    await end.say(CONNECT)
    await end.held(WAITING)
    await end.hears()
    await end.quiet()
