"""One call from its first word to its record, and everything that was wrong with it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from core.models import now
from dev.bench.chaos.callers import WAIT_S, FarEnd
from dev.bench.chaos.faults import Fault, Part
from dev.bench.rig import LLM_FIRST_TOKEN_MS, TTS_FIRST_BYTE_MS
from dev.bench.streams.losses import silence_ms
from dev.providers import Cartesia, Control, Deepgram, OpenAI, Rule, Script, ToolCall

GREETING: Final = "Hello, this is the corner restaurant."
QUESTION: Final = "When do you open?"
ANSWER: Final = "We open at five in the afternoon."
TABLES: Final = ("one", "two", "three", "four", "five", "six")
BOOKED: Final = "The table is booked."
TOOL: Final = "book_table"
_ANSWER_WITHIN_S: Final = 15.0
_ONCE: Final = ("call.dialing", "call.ringing", "call.answered", "call.ended")


def booking(table: str) -> str:
    return f"Please book table {table}."


def control() -> Control:
    """Return the providers' part: the question, and one booking for each table."""
    rules = [
        Rule(equals=QUESTION, reply=ANSWER),
        *(
            Rule(equals=booking(table), call=ToolCall(name=TOOL, arguments={"table": table}))
            for table in TABLES
        ),
        Rule(role="tool", tool_name=TOOL, reply=BOOKED),
    ]
    return Control(
        deepgram=Deepgram(phrases=[QUESTION, *map(booking, TABLES)]),
        openai=OpenAI(first_token_ms=LLM_FIRST_TOKEN_MS, scripts={"default": Script(rules=rules)}),
        cartesia=Cartesia(first_byte_ms=TTS_FIRST_BYTE_MS),
    )


def agent(tool_url: str) -> dict[str, Any]:
    """Return the agent of all calls. ``tool_url`` books tables."""
    return {
        "name": "Chaos",
        "voiceMode": "hosted",
        "systemPrompt": "You work in a restaurant.",
        "beginMessage": GREETING,
        "customTools": [
            {
                "name": TOOL,
                "description": "Books a table.",
                "url": tool_url,
                "parameters": {"type": "object", "properties": {"table": {"type": "string"}}},
            }
        ],
    }


@dataclass(frozen=True, slots=True)
class Mark:
    """A fault during the call. ``sockets``: how many connections the caller had had by then."""

    fault: Fault
    at: datetime
    at_ms: float
    sockets: int


@dataclass(slots=True)
class Conversation:
    """``serves`` is the part of the stack that has the call's agents."""

    far: FarEnd
    serves: Part
    marks: list[Mark] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """The tables that it booked, as far as it knows."""
    problems: list[str] = field(default_factory=list)
    silences: list[tuple[Fault, float]] = field(default_factory=list)
    """What the caller heard of the faults that it noticed, in ms."""

    def mark(self, fault: Fault) -> None:
        self.marks.append(Mark(fault, now(), self.far.now_ms(), self.far.sockets))

    async def hold(self, chance: random.Random, turns: int) -> None:
        """Talk, and hang up."""
        far = self.far
        try:
            await far.hears(0.0, WAIT_S)
            await far.quiet()
            for turn in range(turns):
                await asyncio.sleep(chance.uniform(0.0, 1.0))
                said_ms = await far.say(self._line(turn))
                await far.hears(said_ms, _ANSWER_WITHIN_S)
                await far.quiet()
            if far.over:
                self.problems.append("over before the caller hung up")
        except Exception as error:
            self.problems.append(f"{type(error).__name__} {error}: over {far.over}".strip())
        try:
            await far.hang_up()
        except Exception as error:
            self.problems.append(f"while hanging up: {type(error).__name__} {error}".strip())

    def _line(self, turn: int) -> str:
        if turn % 2 == 0:
            return QUESTION
        table = TABLES[len(self.asked) % len(TABLES)]
        self.asked.append(table)
        return booking(table)

    # --- afterwards

    def judge(
        self,
        record: Mapping[str, Any],
        timeline: Sequence[Mapping[str, Any]],
        runs: Mapping[str, int],
    ) -> None:
        """Compare with the record, the timeline and the tool's ``runs`` by table."""
        end = (record["status"], record["disconnectionReason"])
        if end != ("completed", "user_hangup"):
            self.problems.append(f"recorded as {end}")
        seen = Counter(str(event["type"]) for event in timeline)
        self._judge_agents(timeline, seen)
        for (type, source), count in Counter((e["type"], e["source"]) for e in timeline).items():
            if count > 1 and type in _ONCE:
                self.problems.append(f"{type} {count} times by {source}")
        said = " ".join(turn["response"] or "" for turn in record["transcripts"])
        if (greeted := said.count(GREETING)) > 1:
            self.problems.append(f"greeted {greeted} times")
        for table, count in runs.items():
            if count > 1:
                self.problems.append(f"table {table} was booked {count} times")
        missing = set(self.asked) - set(runs)
        if missing and not self.marks:
            self.problems.append(f"not booked, without any fault: {sorted(missing)}")
        if self.problems:
            self.problems.append(self._story(timeline))

    def _judge_agents(self, timeline: Sequence[Mapping[str, Any]], seen: Counter[str]) -> None:
        lost = [datetime.fromisoformat(e["at"]) for e in timeline if e["type"] == "agent.lost"]
        fatal = [mark for mark in self.marks if self._may_cost_the_agent(mark.fault)]
        if len(lost) > len(fatal):
            self.problems.append(f"{len(lost)} agents lost by {len(fatal)} faults")
        if seen["agent.resumed"] > len(lost):
            self.problems.append(f"{seen['agent.resumed']} agents resumed for {len(lost)} lost")
        heard = self.far.heard()
        cost = [self._cause(at, fatal) for at in lost]
        for mark in self.marks:
            moved = "gateway" in mark.fault.parts and self._came_back(mark)
            if mark not in cost and not moved:
                continue
            silence = silence_ms(heard, mark.at_ms)
            if silence is None:
                if len(heard) / 8 - mark.at_ms > 1000 * _ANSWER_WITHIN_S:
                    self.problems.append(f"{mark.fault}: heard nothing more")
                continue
            self.silences.append((mark.fault, silence))

    def _story(self, timeline: Sequence[Mapping[str, Any]]) -> str:
        """Return the faults and the timeline, in their order."""
        told = [(datetime.fromisoformat(e["at"]), e) for e in timeline]
        moments = [(mark.at, str(mark.fault)) for mark in self.marks]
        moments += [(at, e["what"]) for at, e in told]
        moments.sort(key=lambda moment: moment[0])
        return "; ".join(f"{at:%M:%S.%f}"[:-3] + f" {what}" for at, what in moments)

    def _cause(self, lost_at: datetime, fatal: Sequence[Mark]) -> Mark | None:
        before = [mark for mark in fatal if mark.at <= lost_at]
        return before[-1] if before else None

    def _may_cost_the_agent(self, fault: Fault) -> bool:
        return self.serves in fault.parts and not fault.planned

    def _came_back(self, mark: Mark) -> bool:
        later = [other.sockets for other in self.marks if other.at > mark.at]
        return (later[0] if later else self.far.sockets) > mark.sockets
