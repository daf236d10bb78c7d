"""A history in which tools ran: where each of them is, and what a model gets for its result."""

from __future__ import annotations

from typing import Any

import pytest
from livekit.agents.llm import ChatContext, ChatItem, ChatMessage

from core.models import Turn, Word, now
from core.recovery import Recovered
from core.tools.memory import SECRET_DIGITS, ToolAnswered, ToolCalled, ToolRun
from worker.voice.earlier.tools import DONE, UNKNOWN, in_order, items

pytestmark = pytest.mark.unit


def spoken(text: str, start_ms: int, each_ms: int = 100) -> dict[str, Any]:
    """Return an answer's fields: one word after the other."""
    words = [
        Word(text=word, start_ms=start_ms + each_ms * place, end_ms=start_ms + each_ms * place + 90)
        for place, word in enumerate(text.split())
    ]
    times = {"response_start_ms": start_ms, "response_end_ms": words[-1].end_ms}
    return {"response": text, "response_words": words, **times}


def turn(id: str, transcript: str, **fields: Any) -> Turn:
    return Turn(id=id, transcript=transcript, start_ms=0 if transcript else None, **fields)


def run(
    id: str, turn: str | None, called_ms: int, answered_ms: int | None = None, **answer: Any
) -> ToolRun:
    called = ToolCalled(id=id, name="book", arguments={"people": 4}, turn=turn, at_ms=called_ms)
    if answered_ms is None:
        return ToolRun(called=called)
    values = {"ok": True, "result": "booked", **answer}
    return ToolRun(called=called, answered=ToolAnswered(id=id, at_ms=answered_ms, **values))


def so_far(turns: list[Turn], *tools: ToolRun) -> Recovered:
    return Recovered(epoch=1, lost_at=now(), answered_at=now(), turns=turns, tools=list(tools))


def told(recovered: Recovered) -> list[str]:
    """Return the order in short."""
    found = []
    for part in in_order(recovered):
        if isinstance(part, ToolRun):
            found.append(f"<{part.called.id}>")
        else:
            found += [f"C: {part.transcript}"] * bool(part.transcript)
            found += [f"A: {part.response}"] * bool(part.response)
    return found


GREETING = turn("turn_0", "", **spoken("Hello there.", 0))


def test_without_tools_the_turns_stay_as_they_are() -> None:
    turns = [GREETING, turn("turn_1", "hi", **spoken("Hi.", 900)), turn("turn_2", "bye")]
    assert list(in_order(so_far(turns))) == turns


def test_a_tool_is_between_what_was_said_before_and_of_it() -> None:
    asked = turn(
        "turn_1", "a table", interrupted=True, **spoken("One moment, please. Done, it is", 1000)
    )
    parts = list(in_order(so_far([GREETING, asked], run("a", "turn_1", 1100, 1300))))
    first, tool, last = parts[1:]
    assert isinstance(first, Turn) and isinstance(tool, ToolRun) and isinstance(last, Turn)
    assert (first.transcript, first.response, first.interrupted) == (
        "a table",
        "One moment, please.",
        False,
    )
    assert (last.transcript, last.response, last.interrupted) == ("", "Done, it is", True)
    assert last.response_start_ms == 1300
    assert [word.text for word in last.response_words] == ["Done,", "it", "is"]


@pytest.mark.parametrize(
    ("answer", "runs", "order"),
    [
        # Nothing was heard yet.
        ({}, [("a", 1000, 1200)], ["C: book", "<a>"]),
        ({}, [("a", 1000, None)], ["C: book", "<a>"]),
        # Words that began before the tool had answered cannot tell of its result.
        (spoken("One moment.", 1000), [("a", 1000, 1050)], ["C: book", "A: One moment.", "<a>"]),
        (spoken("One moment.", 1000), [("a", 1000, None)], ["C: book", "A: One moment.", "<a>"]),
        (spoken("It is done.", 1300), [("a", 1000, 1200)], ["C: book", "<a>", "A: It is done."]),
        # Two tools, one after the other, and beside each other.
        (
            spoken("First. Second. Third.", 1000),
            [("a", 1010, 1100), ("b", 1110, 1200)],
            ["C: book", "A: First.", "<a>", "A: Second.", "<b>", "A: Third."],
        ),
        (
            spoken("Both are done.", 1500),
            [("a", 1010, 1100), ("b", 1020, 1200)],
            ["C: book", "<a>", "<b>", "A: Both are done."],
        ),
        # Without times of words, the whole answer is on one side.
        (
            {"response": "It is done.", "response_start_ms": 1000, "response_end_ms": 1900},
            [("a", 1000, 1200)],
            ["C: book", "<a>", "A: It is done."],
        ),
        (
            {"response": "One moment.", "response_start_ms": 900, "response_end_ms": 1100},
            [("a", 1000, 1200)],
            ["C: book", "A: One moment.", "<a>"],
        ),
    ],
)
def test_where_a_tool_is(
    answer: dict[str, Any], runs: list[tuple[str, int, int | None]], order: list[str]
) -> None:
    tools = [run(id, "turn_1", called, answered) for id, called, answered in runs]
    recovered = so_far([GREETING, turn("turn_1", "book", **answer)], *tools)
    assert told(recovered) == ["A: Hello there.", *order]
    # The last turn is still to be answered unless words tell of the last tool.
    assert (recovered.unanswered is not None) == order[-1].startswith("<")
    assert recovered.tools_of_last_turn == tools


def test_tools_of_other_turns() -> None:
    turns = [GREETING, turn("turn_1", "book", **spoken("Done.", 900)), turn("turn_2", "thanks")]
    tools = [
        run("early", None, 0, 10),
        run("a", "turn_1", 500, 600),
        run("held", "turn_that_is_held_back", 1500, 1600),
    ]
    recovered = so_far(turns, *tools)
    assert told(recovered) == [
        "A: Hello there.",
        "<early>",
        "C: book",
        "<a>",
        "A: Done.",
        "C: thanks",
        "<held>",
    ]
    assert [each.called.id for each in recovered.tools_of_last_turn] == ["held"]
    assert told(so_far([], *tools)) == ["<early>", "<a>", "<held>"]


def test_a_masked_turn_keeps_its_tools() -> None:
    masked = Turn(id="turn_1", start_ms=500, masked=True)
    recovered = so_far([GREETING, masked], run("a", "turn_1", 600))
    assert told(recovered) == ["A: Hello there.", "<a>"]
    assert len(recovered.tools_of_last_turn) == 1


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        ({"result": "booked"}, "booked"),
        ({"result": None}, DONE),
        ({"result": "Error: no", "ok": False}, "Error: no"),
        (
            {"result": f"The caller pressed 16 secret keys, {SECRET_DIGITS}."},
            f"The caller pressed 16 secret keys, {SECRET_DIGITS}.\n{SECRET_DIGITS} are lost. If "
            "you need them, ask the caller to type them again.",
        ),
    ],
)
def test_what_a_model_gets_for_a_result(changes: dict[str, Any], output: str) -> None:
    call, answer = items(run("a", "turn_1", 500, 900, **changes), 1000.0)
    assert (call.call_id, call.name, call.arguments) == ("a", "book", '{"people": 4}')
    assert (answer.call_id, answer.name, answer.output) == ("a", "book", output)
    assert answer.is_error is (changes.get("ok") is False)
    assert (call.created_at, answer.created_at) == (1000.5, 1000.9)


def test_a_tool_without_a_result_must_not_be_called_again() -> None:
    unfinished = run("a", "turn_1", 500)
    _, answer = items(unfinished, 0)
    assert (answer.output, answer.is_error) == (UNKNOWN, True)
    for name, again in (("end_call", "Call it again"), ("collect_digits", "type everything again")):
        called = unfinished.called.model_copy(update={"name": name, "arguments": None})
        call, answer = items(ToolRun(called=called), 0)
        assert again in answer.output and call.arguments == "{}"


def test_a_model_takes_the_history() -> None:
    """OpenAI refuses a request in which a call has no result right after it."""
    asked = turn("turn_1", "book", **spoken("One moment. Done.", 1000))
    tools = [run("a", "turn_1", 1010, 1020), run("b", "turn_1", 1030)]
    found: list[ChatItem] = []
    for part in in_order(so_far([GREETING, asked], *tools)):
        if isinstance(part, ToolRun):
            found += items(part, 1000.0)
        else:
            for role, text in (("user", part.transcript), ("assistant", part.response)):
                if text:
                    found.append(ChatMessage(role=role, content=[text]))
    messages, _ = ChatContext(found).to_provider_format("openai")
    open_calls: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
        else:
            assert not open_calls
            open_calls = {each["id"] for each in message.get("tool_calls", ())}
    assert not open_calls
    assert [message["role"] for message in messages].count("tool") == 2
