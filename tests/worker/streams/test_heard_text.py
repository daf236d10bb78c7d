"""Tests of worker.streams.heard_text: the words in so much of a speech's audio."""

from __future__ import annotations

import pytest
from livekit.agents.types import TimedString

from worker.streams.heard_text import HeardText

pytestmark = pytest.mark.unit


async def of(*pieces: str) -> HeardText:
    text = HeardText()
    for piece in pieces:
        await text.capture_text(piece)
    return text


def timed(text: str, start_s: float) -> TimedString:
    return TimedString(text, start_time=start_s, end_time=start_s + 0.2)


@pytest.mark.parametrize(
    ("heard_s", "words"),
    [
        (0.0, ""),
        (0.01, "We"),
        (0.3, "We"),
        (0.31, "We are"),
        (0.9, "We are open."),
        (9, "We are open."),
    ],
)
async def test_words_with_times(heard_s: float, words: str) -> None:
    text = await of(timed("We", 0.0), " ", timed("are", 0.3), " ", timed("open.", 0.6))
    assert text.until(heard_s, None) == words


@pytest.mark.parametrize(
    ("heard_s", "words"),
    [(0.0, ""), (0.1, "one"), (1.1, "one two"), (2.2, "one two six"), (3.0, "one two six")],
)
async def test_words_without_times_are_spread_over_the_audio(heard_s: float, words: str) -> None:
    assert (await of("one two ", "six")).until(heard_s, 3.0) == words


async def test_of_audio_that_is_not_complete_the_length_is_guessed() -> None:
    text = await of("one two three four five six seven eight nine ten")  # 48 characters: 3.2 s
    assert text.until(1.6, None) == "one two three four five"
    assert text.until(60, None).endswith("ten")


async def test_nothing_was_heard_of_no_audio() -> None:
    assert (await of("Hello")).until(0.0, 0.0) == ""
    assert HeardText().until(1.0, 1.0) == ""


async def test_the_next_speech_begins_after_a_flush() -> None:
    text = await of("Hello.")
    text.flush()
    assert text.until(1.0, 1.0) == "Hello."
    await text.capture_text("Goodbye.")
    assert text.until(1.0, 1.0) == "Goodbye."
    text.clear()
    assert text.until(1.0, 1.0) == ""
