"""The conversation of the demo and the tests: the caller's lines and the agent's answers.

With the local providers the agent answers from the script below. With real providers the
same caller talks to a real model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dev.providers import Control, Deepgram, OpenAI, Rule, Script, ToolCall

OPENING = "What time do you open on Sunday?"
TABLE = "Do you have a table for four at seven?"
SPECIALS = "What are your specials tonight?"
ENOUGH = "Thank you, that is enough."
GOODBYE = "No thank you. Goodbye."

OPENING_ANSWER = "On Sunday we open at five."
TABLE_ANSWER = "Yes, a table is free. Press one to book it."
BOOKED = "Your table is booked."
SPECIALS_ANSWER = (
    "Tonight we have tomato soup with fresh basil. "
    "Then there is grilled fish with lemon and potatoes. "
    "We also have roast lamb with rosemary and beans. "
    "And for dessert there is a chocolate cake with cream."
)
ENOUGH_ANSWER = "Of course. Anything else?"
GOODBYE_ANSWER = "Goodbye, and see you on Sunday."

CALLER_LINES = (OPENING, TABLE, SPECIALS, ENOUGH, GOODBYE)


@dataclass(frozen=True, slots=True)
class Speak:
    """A line that the caller speaks when the agent has finished."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Press:
    """A key that the caller presses (DTMF)."""

    digit: str
    answer: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """A line that the caller speaks ``after_ms`` into the answer to ``question``."""

    question: str
    text: str
    after_ms: int
    answer: str


Step = Speak | Press | Interrupt

STEPS: tuple[Step, ...] = (
    Speak(OPENING, OPENING_ANSWER),
    Speak(TABLE, TABLE_ANSWER),
    Press("1", BOOKED),
    Interrupt(SPECIALS, ENOUGH, 1500, ENOUGH_ANSWER),
    Speak(GOODBYE, GOODBYE_ANSWER),
)


def control() -> Control:
    """Return the local providers' configuration for this conversation."""
    rules = [
        Rule(equals=OPENING, reply=OPENING_ANSWER),
        Rule(
            equals=TABLE,
            call=ToolCall(name="check_table", arguments={"people": 4, "time": "seven"}),
        ),
        Rule(role="tool", tool_name="check_table", keywords=["true"], reply=TABLE_ANSWER),
        Rule(role="tool", tool_name="check_table", reply="I am sorry, we are full at seven."),
        Rule(pattern=r"pressed 1\b", reply=BOOKED),
        Rule(equals=SPECIALS, reply=SPECIALS_ANSWER),
        Rule(equals=ENOUGH, reply=ENOUGH_ANSWER),
        Rule(equals=GOODBYE, reply=GOODBYE_ANSWER, call=ToolCall(name="end_call")),
    ]
    return Control(
        deepgram=Deepgram(phrases=list(CALLER_LINES)),
        openai=OpenAI(scripts={"default": Script(rules=rules)}),
    )


def agent(tool_url: str, base: dict[str, Any]) -> dict[str, Any]:
    """Return the demo agent's definition: it records, and its tool checks the reservations."""
    tool = {
        "name": "check_table",
        "description": "Whether a table is free: how many people, and at what time.",
        "url": tool_url,
        "parameters": {
            "type": "object",
            "properties": {
                "people": {"type": "integer", "minimum": 1},
                "time": {"type": "string", "description": "As the caller said it."},
            },
            "required": ["people", "time"],
        },
    }
    return {**base, "customTools": [tool], "recording": {"enabled": True}}
