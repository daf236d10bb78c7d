"""Tests of gateway.transcripts: a transcript as WebVTT and as plain text, literally."""

from __future__ import annotations

import re

import pytest

from core.models import Turn, Word
from gateway.transcripts import text_formats

pytestmark = pytest.mark.unit

TURNS = [
    Turn(id="turn_1", response="Hello!", response_start_ms=80, response_end_ms=900),
    Turn(
        id="turn_2",
        transcript="Tom & Co?",
        start_ms=61_500,
        end_ms=62_000,
        response="Yes.",
        response_start_ms=3_662_500,
        response_end_ms=3_663_000,
    ),
]


def test_a_conversation_as_vtt() -> None:
    assert text_formats.vtt(TURNS) == (
        "WEBVTT\n\n"
        "00:00:00.080 --> 00:00:00.900\n<v Agent>Hello!\n\n"
        "00:01:01.500 --> 00:01:02.000\n<v Caller>Tom &amp; Co?\n\n"
        "01:01:02.500 --> 01:01:03.000\n<v Agent>Yes.\n"
    )


def test_a_conversation_as_text() -> None:
    assert text_formats.text(TURNS) == (
        "00:00 Agent: Hello!\n01:01 Caller: Tom & Co?\n61:02 Agent: Yes.\n"
    )


def test_nothing_was_said() -> None:
    turns = [Turn(id="turn_1", masked=True, start_ms=1, end_ms=2)]
    assert (text_formats.vtt(turns), text_formats.text(turns)) == ("WEBVTT\n", "")
    assert text_formats.vtt([]) == "WEBVTT\n"


def test_what_has_no_time_is_in_the_text_only() -> None:
    turns = [TURNS[0], Turn(id="turn_2", transcript="[The caller pressed 5]")]
    assert "pressed" not in text_formats.vtt(turns)
    assert text_formats.text(turns) == (
        "00:00 Agent: Hello!\n--:-- Caller: [The caller pressed 5]\n"
    )


def test_utterances_are_in_the_order_in_which_they_began() -> None:
    turns = [
        Turn(id="turn_1", response="Long.", response_start_ms=500, response_end_ms=9_000),
        Turn(id="turn_2", transcript="Early.", start_ms=100, end_ms=400),
    ]
    assert text_formats.text(turns) == "00:00 Caller: Early.\n00:00 Agent: Long.\n"


def test_a_long_turn_is_split_where_its_words_allow() -> None:
    words = [Word(text=f"w{n}", start_ms=n * 3_000, end_ms=n * 3_000 + 900) for n in range(5)]
    turn = Turn(id="turn_1", transcript="w0 w1 w2 w3 w4", start_ms=0, end_ms=12_900, words=words)
    interruption = Turn(id="turn_2", response="Mhm", response_start_ms=7_000, response_end_ms=7_100)
    assert text_formats.vtt([turn, interruption]) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:06.900\n<v Caller>w0 w1 w2\n\n"
        "00:00:07.000 --> 00:00:07.100\n<v Agent>Mhm\n\n"
        "00:00:09.000 --> 00:00:12.900\n<v Caller>w3 w4\n"
    )
    unknown = turn.model_copy(update={"words": []})
    assert text_formats.vtt([unknown]).count("-->") == 1


@pytest.mark.parametrize(
    "hostile",
    [
        "a --> b",
        "a\n\n00:00:00.000 --> 00:00:09.000\n<v Agent>I owe you money",
        "<script>alert(1)</script>",
        "</v><v Agent>yes",
        "NUL\x00 and \x1b[2J and \x85 and \u2028 and \u202e",
        "a\r\nNOTE b\rSTYLE",
        "&lt;b&gt;",
    ],
)
def test_no_text_can_be_more_than_the_text_of_its_cue(hostile: str) -> None:
    word = Word(text=hostile, start_ms=0, end_ms=8_000)
    for words in ([], [word, word]):
        turn = Turn(id="t", transcript=hostile, start_ms=0, end_ms=16_000, words=words)
        rendered = text_formats.vtt([turn])
        header, *cues = rendered.rstrip("\n").split("\n\n")
        assert header == "WEBVTT"
        assert len(cues) == (2 if words else 1)
        for cue in cues:
            times, text = cue.split("\n")
            assert re.fullmatch(r"[0-9:.]{12} --> [0-9:.]{12}", times)
            assert text.startswith("<v Caller>")
            assert not re.search(r"[<>\x00-\x1f\x7f-\x9f\u2028\u202e]", text[len("<v Caller>") :])
        assert len(text_formats.text([turn]).splitlines()) == 1


def test_a_cue_ends_after_it_starts() -> None:
    turn = Turn(id="t", transcript="a", start_ms=5, end_ms=5)
    assert "00:00:00.005 --> 00:00:00.006" in text_formats.vtt([turn])
