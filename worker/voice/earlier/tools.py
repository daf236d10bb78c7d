"""The tools that earlier agents of a call ran, in their places in the conversation's history."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Final

from livekit.agents.llm import FunctionCall, FunctionCallOutput

from core.models import Turn
from core.recovery import Recovered, told_from
from core.tools.memory import SECRET_DIGITS, ToolRun

UNKNOWN = (
    "Error: it is not known whether this tool has done its work: the connection broke while it "
    "ran. Do not call it again by yourself. Tell the caller, and call it only if they ask for it."
)
DONE = "This tool has run for this request already. Its result is not known any more."
# The only effect of these is on the call itself, so it does no harm to use them again.
_UNFINISHED: Final = {
    "end_call": "The connection broke before the call was ended. Call it again if it is time.",
    "collect_digits": (
        "Error: the connection broke while the caller typed. Ask them to type everything again."
    ),
}
_DIGITS_LOST = f"{SECRET_DIGITS} are lost. If you need them, ask the caller to type them again."


def in_order(so_far: Recovered) -> Iterator[Turn | ToolRun]:
    """Return turns and tools in the order in which a model gets them.

    A turn in which tools ran comes in parts: what was said before a tool had answered, the tool,
    and what was said of its result.
    """
    known = {turn.id for turn in so_far.turns}
    ran: dict[str | None, list[ToolRun]] = {}
    for run in so_far.tools:
        of = run.called.turn
        ran.setdefault(of if of in known or of is None else "", []).append(run)
    before_all = ran.get(None, [])
    for turn in so_far.turns:
        # Those of before the caller's first words, such as the greeting's.
        if turn.transcript:
            yield from before_all
            before_all = []
        yield from _parts(turn, ran.get(turn.id, []))
    yield from before_all
    # Of turns that are not on record: a lost agent's last one may be held back or gone.
    yield from ran.get("", [])


def _parts(turn: Turn, runs: Sequence[ToolRun]) -> Iterator[Turn | ToolRun]:
    if not runs:
        yield turn
        return
    words = turn.response_words
    pieces = [word.text for word in words] or [turn.response]
    begin = 0
    part = turn
    for run in runs:
        told = told_from(turn, run)
        end = len(pieces) if told is None else max(begin, told)
        yield from _part(part, turn, begin, end)
        yield run
        part = turn.model_copy(update={"transcript": "", "words": []})
        if begin < end < len(words):
            part = part.model_copy(update={"response_start_ms": words[end].start_ms})
        begin = end
    yield from _part(part, turn, begin, len(pieces))


def _part(part: Turn, whole: Turn, begin: int, end: int) -> Iterator[Turn]:
    """Return ``part`` with these words of the whole turn's answer, if anything was said."""
    words = whole.response_words[begin:end]
    pieces = [word.text for word in words] or [whole.response][begin:end]
    every = end - begin == max(1, len(whole.response_words))
    response = whole.response if every else " ".join(pieces)
    if part.transcript or response:
        last = end >= len(whole.response_words)
        yield part.model_copy(
            update={
                "response": response,
                "response_words": words,
                "interrupted": whole.interrupted and last,
            }
        )


def items(run: ToolRun, answered_at: float) -> tuple[FunctionCall, FunctionCallOutput]:
    """Return the run as livekit-agents keeps it. ``answered_at``: when the call was answered."""
    called, answered = run.called, run.answered
    ok = answered is not None and answered.ok
    return (
        FunctionCall(
            call_id=called.id,
            name=called.name,
            arguments=json.dumps(called.arguments or {}),
            created_at=_at(called.at_ms, answered_at),
        ),
        FunctionCallOutput(
            call_id=called.id,
            name=called.name,
            output=_output(run),
            is_error=not ok,
            created_at=_at(called.at_ms if answered is None else answered.at_ms, answered_at),
        ),
    )


def _output(run: ToolRun) -> str:
    if run.answered is None:
        return _UNFINISHED.get(run.called.name, UNKNOWN)
    result = DONE if run.answered.result is None else run.answered.result
    return f"{result}\n{_DIGITS_LOST}" if SECRET_DIGITS in result else result


def _at(ms: int, answered_at: float) -> float:
    # livekit-agents orders by time, and the former agent's clock may have been ahead of ours.
    return min(answered_at + ms / 1000, time.time())
