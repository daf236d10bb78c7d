"""The first piece of an answer that a TTS is given, however the LLM's words arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.voice.clauses import ClauseFirst

pytestmark = pytest.mark.unit


async def spoken(*words: str) -> list[str]:
    stream = ClauseFirst().stream()
    for word in words:
        stream.push_text(word)
    stream.end_input()
    return [piece.token async for piece in stream]


async def begun(*words: str) -> str | None:
    """Return what is spoken while more words may come; None if nothing is."""
    stream = ClauseFirst().stream()
    for word in words:
        stream.push_text(word)
    early = list(stream._event_ch._queue)
    await stream.aclose()
    return early[0].token if early else None


async def test_the_first_clause_is_spoken_while_the_sentence_is_written() -> None:
    assert await begun("Of", " course,", " we") == "Of course,"
    assert await begun("Of", " course", " we") is None
    assert await spoken("Of", " course,", " we", " open", " at", " five,", " as", " ever.") == [
        "Of course,",
        "we open at five, as ever.",
    ]


async def test_later_clauses_wait_for_their_sentence() -> None:
    words = "Yes, we do. On Sunday, however, we open at five. Shall I book a table, or two?"
    assert await spoken(*(f"{word} " for word in words.split())) == [
        "Yes,",
        "we do. On Sunday, however, we open at five.",
        "Shall I book a table, or two?",
    ]


@pytest.mark.parametrize("text", ["1,000 people came", "At 7:30 we close", "A, b and c"])
async def test_a_number_or_a_letter_is_no_clause(text: str) -> None:
    assert await begun(*text.replace(" ", "| ").split("|")) is None


async def test_a_sentence_that_is_there_at_once_stays_whole() -> None:
    assert await spoken("Hello, how can I help you?") == ["Hello, how can I help you?"]
    assert await spoken("Hello, this is Ann from Rosa's. How can I help you today?") == [
        "Hello, this is Ann from Rosa's.",
        "How can I help you today?",
    ]


@given(st.lists(st.text("ab ,.:;—\n", min_size=1, max_size=6), max_size=30))
async def test_nothing_is_lost_or_said_twice(pieces: list[str]) -> None:
    said = "".join(await spoken(*pieces))
    assert "".join(said.split()) == "".join("".join(pieces).split())
