"""The scripted model, control document, record, query and segmenter, without a network."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from core.audio import Pcm
from dev.providers import Control, Fault, Rule, Script, ToolCall
from dev.providers.control import OpenAI
from dev.providers.listen_query import Query
from dev.providers.openai import Completion, tokens
from dev.providers.record import Record
from dev.providers.script import Answer, Message, answer
from dev.providers.segmenter import Ended, Event, Paused, Resumed, Segmenter, Started

pytestmark = pytest.mark.unit


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


SCRIPT = Script(
    rules=[
        Rule(role="none", reply="Hello!"),
        Rule(equals="Book a table for 2.", call=ToolCall(name="book", arguments={"people": 2})),
        Rule(pattern=r"my name is (?P<name>\w+)", reply="Nice to meet you, $name."),
        Rule(
            pattern=r"weather in (?P<city>\w+)",
            call=ToolCall(name="weather", arguments={"where": {"city": "$city"}, "days": [1]}),
        ),
        Rule(role="tool", tool_name="book", reply="Table $table is yours, $$5."),
        Rule(role="tool", reply="It says $content."),
        Rule(keywords=["yes"], after="shall I", reply="Done."),
        Rule(keywords=["yes"], turn=1, reply="Yes to what?"),
        Rule(keywords=["opening hours", "sunday"], reply="Closed on Sunday."),
        Rule(equals="one and two", reply="Both."),
    ],
    default="Pardon?",
)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([Message("system", "Be kind.")], "Hello!"),
        ([user("MY NAME IS Bob, hi")], "Nice to meet you, Bob."),
        ([user("what are your Opening Hours on Sunday?")], "Closed on Sunday."),
        ([user("opening today, hours on sunday")], "Pardon?"),
        ([user("yes")], "Yes to what?"),
        ([user("a"), assistant("b"), user("yes")], "Pardon?"),
        ([user("a"), assistant("Shall I book it?"), user("Yes!")], "Done."),
        # The last message is matched alone first, then with the other of its turn.
        ([assistant("x"), user("One and"), user("2")], "Both."),
        ([user("my name is Bob"), assistant("Hi."), user("what?")], "Pardon?"),
    ],
)
def test_the_first_rule_that_fits_answers(messages: list[Message], text: str) -> None:
    assert answer(SCRIPT, messages, ["book", "weather"]).text == text


def test_a_tool_is_called_with_filled_arguments() -> None:
    heard = [user("How is the weather in Paris?")]
    called = answer(SCRIPT, heard, ["weather"])
    assert called.tool_name == "weather" and called.rule == 3
    assert json.loads(called.arguments) == {"where": {"city": "Paris"}, "days": [1]}
    # A tool that was not offered is not called.
    assert answer(SCRIPT, heard, ["book"]) == Answer("Pardon?")


def test_a_rule_may_take_longer() -> None:
    script = Script(rules=[Rule(equals="a", reply="Well.", delay_ms=700)])
    assert answer(script, [user("a")], []).delay_ms == 700
    assert answer(script, [user("b")], []).delay_ms == 0


def test_a_tool_result_is_answered_with_its_fields() -> None:
    result = Message("tool", '{"table": 7}', "book")
    assert answer(SCRIPT, [user("x"), result], []).text == "Table 7 is yours, $5."
    other = Message("tool", "sunny", "weather")
    assert answer(SCRIPT, [user("x"), other], []).text == "It says sunny."


def test_a_request_is_read_whole() -> None:
    body = Completion.model_validate(
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "book"}}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "{}"},
            ],
            "tools": [{"type": "function", "function": {"name": "book", "parameters": {}}}],
            "temperature": 0.2,
        }
    )
    assert body.conversation()[0].text == "Be kind."
    assert body.conversation()[3] == Message("tool", "{}", "book")
    assert body.callable_tools() == ["book"]
    assert body.model_copy(update={"tool_choice": "none"}).callable_tools() == []


def test_tokens_make_up_the_text() -> None:
    assert tokens("Hello, you  there.") == ["Hello,", " you", "  there."]


# --- control


@pytest.mark.parametrize(
    "document",
    [
        {"deepgram": {"final_delay_ms": -1}},
        {"openai": {"nope": 1}},
        {"cartesia": {"faults": [{"kind": "explode"}]}},
        {"openai": {"scripts": {"default": {"rules": [{"equals": "x"}]}}}},
        {"openai": {"scripts": {"default": {"rules": [{"pattern": "(", "reply": "x"}]}}}},
        {"cartesia": {"faults": [{"kind": "status", "status": 200}]}},
    ],
)
def test_a_wrong_document_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Control.model_validate(document)


def test_the_document_survives_json() -> None:
    control = Control(openai=OpenAI(scripts={"m": SCRIPT}))
    assert Control.model_validate_json(control.model_dump_json()) == control


def test_faults_are_counted_down_by_kind() -> None:
    control = Control()
    control.openai.faults = [
        Fault(kind="drop", times=None),
        Fault(kind="rate_limit", times=2, retry_after_s=3),
    ]
    statuses = [control.openai.take_fault(before_answer=True) for _ in range(3)]
    assert [fault.http_status if fault else None for fault in statuses] == [429, 429, None]
    for _ in range(5):
        fault = control.openai.take_fault(before_answer=False)
        assert fault is not None and fault.kind == "drop"
    # No two documents share a list.
    assert Control().openai.faults == []


def test_a_model_without_a_script_of_its_own_has_the_default_one() -> None:
    settings = OpenAI(scripts={"default": Script(default="a"), "m": Script(default="b")})
    assert settings.script("m").default == "b" and settings.script("x").default == "a"


# --- record


async def test_the_record_is_read_from_a_number_on_and_can_be_awaited() -> None:
    record = Record(size=3)
    for number in range(5):
        record.add("openai" if number % 2 else "deepgram", "e", n=number, late_ms=1.23456, x=None)
    assert [entry["n"] for entry in record.entries()] == [2, 3, 4]
    assert [entry["n"] for entry in record.entries(since=4, provider="deepgram")] == [4]
    assert "x" not in record.entries()[0] and record.entries()[0]["late_ms"] == 1.23
    record.add("cartesia", "later")
    found = await record.wait_for(lambda entry: entry["event"] == "later", 1)
    assert found["provider"] == "cartesia"
    with pytest.raises(TimeoutError):
        await record.wait_for(lambda entry: entry["event"] == "never", 0.01)


# --- query


QUERY = {"encoding": "linear16", "sample_rate": "16000"}


def test_a_query_is_read() -> None:
    query = Query.parse({**QUERY, "endpointing": "25", "interim_results": "true"})
    assert (query.sample_rate, query.endpointing_ms, query.interim_results) == (16000, 25, True)
    assert Query.parse({**QUERY, "endpointing": "false"}).endpointing_ms is None
    assert Query.parse({**QUERY, "smart_format": "true"}).punctuate
    stereo = Query.parse({**QUERY, "channels": "2"})
    assert stereo.decode(np.array([1, 9, 2, 9], "<i2").tobytes()).tolist() == [1, 2]
    # The odd byte of a client that cuts a sample in two is dropped.
    assert Query.parse(QUERY).decode(b"\x01\x00\x02").tolist() == [1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoding": "opus"}, "encoding"),
        ({"sample_rate": "16k"}, "sample_rate"),
        ({"sample_rate": ""}, "sample_rate"),
        ({"interim_results": "1"}, "interim_results"),
        ({"utterance_end_ms": "1000"}, "interim_results"),
        ({"utterance_end_ms": "10", "interim_results": "true"}, "utterance_end_ms"),
    ],
)
def test_a_wrong_query_is_refused_by_name(change: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Query.parse({**QUERY, **change})


# --- segmentation

RATE = 8000


def sound(*parts_ms: int) -> Pcm:
    """Return silence, tone, silence, tone … of the given lengths."""
    parts = []
    for index, length_ms in enumerate(parts_ms):
        samples = np.arange(length_ms * RATE // 1000)
        level = 8000 if index % 2 else 0
        parts.append((level * np.sin(2 * np.pi * 300 / RATE * samples)).astype(np.int16))
    return np.concatenate(parts)


def events(pcm: Pcm, silence_ms: float, piece: int = 160) -> list[Event]:
    segmenter = Segmenter(RATE, silence_ms)
    found: list[Event] = []
    for start in range(0, len(pcm), piece):
        found += segmenter.feed(pcm[start : start + piece])
    return found


@pytest.mark.parametrize("piece", [37, 80, 400, 100_000])
def test_speech_is_found_on_the_audios_own_clock(piece: int) -> None:
    started, paused, ended = events(sound(500, 400, 600), 200, piece)
    assert started == Started(500.0)
    assert isinstance(paused, Paused) and isinstance(ended, Ended)
    assert ended.speech_end_ms == 900.0 and ended.paused
    assert ended.from_ms == 520.0 - 150  # before the frame at which speech was certain
    assert len(ended.audio) == RATE * (900 + 100 - 370) // 1000
    assert np.array_equal(paused.audio, ended.audio[: len(paused.audio)])


def test_a_short_pause_does_not_end_speech() -> None:
    kinds = [type(event) for event in events(sound(300, 300, 150, 300, 400), 200)]
    assert kinds == [Started, Paused, Resumed, Paused, Ended]
    kinds = [type(event) for event in events(sound(300, 300, 250, 300, 400), 200)]
    assert kinds == [Started, Paused, Ended, Started, Paused, Ended]


def test_clicks_and_quiet_noise_are_not_speech() -> None:
    assert events(sound(100, 20, 300, 20, 300), 200) == []
    noise = np.random.default_rng(0).normal(0, 60, RATE).astype(np.int16)
    assert events(noise, 200) == []


def test_a_flush_ends_what_is_being_said() -> None:
    segmenter = Segmenter(RATE, 500)
    assert segmenter.flush() == []
    segmenter.feed(sound(200, 300))
    (ended,) = segmenter.flush()
    assert isinstance(ended, Ended) and ended.speech_end_ms == 500.0 and not ended.paused
    assert not segmenter.speaking and segmenter.flush() == []


def test_an_endless_sound_is_cut() -> None:
    ends = [event for event in events(sound(0, 65_000), 200) if isinstance(event, Ended)]
    assert [round(event.speech_end_ms / 1000) for event in ends] == [30, 60]
