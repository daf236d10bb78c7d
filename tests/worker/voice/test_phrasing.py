"""Tests of worker.voice.phrasing: when the text received so far is spoken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from livekit.agents import FlushSentinel

from worker.voice.phrasing import in_phrases

pytestmark = pytest.mark.unit


async def given(*pieces: str) -> AsyncIterator[str]:
    for piece in pieces:
        yield piece


async def phrases(*pieces: str) -> list[str]:
    """Return the pieces, with a bar where a phrase ends."""
    return [
        "|" if isinstance(part, FlushSentinel) else part
        async for part in in_phrases(given(*pieces))
    ]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["Let me check.", "It is free."], ["Let me check.", "|", " It is free.", "|"]),
        (["Let me check. ", "It is free."], ["Let me check. ", "|", " It is free.", "|"]),
        (["On", " Sunday", " at", " five", "."], ["On", " Sunday", " at", " five", "."]),
        (["He said “no way.”", "Yes"], ["He said “no way.”", "|", " Yes"]),
        (["请稍等。", "好的"], ["请稍等。", "|", " 好的"]),
        (["...", " ", "Hm"], ["... Hm"]),
        ([" ", "…", "👍"], []),
        (["Hello there.", "!", " And"], ["Hello there.", "|", " ! And"]),
        ([], []),
    ],
)
async def test_where_phrases_end(pieces: list[str], expected: list[str]) -> None:
    assert await phrases(*pieces) == expected


async def test_a_pause_ends_a_phrase() -> None:
    more = asyncio.Event()

    async def halting() -> AsyncIterator[str]:
        yield "One moment"
        await more.wait()
        yield "please"

    parts = in_phrases(halting())
    assert await anext(parts) == "One moment"
    assert isinstance(await anext(parts), FlushSentinel)
    more.set()
    assert [part async for part in parts] == [" please"]


async def test_closing_stops_the_wait_for_more() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            yield "One moment"
            await asyncio.Event().wait()
        finally:
            closed.set()

    parts = in_phrases(endless())
    assert await anext(parts) == "One moment"
    assert isinstance(await anext(parts), FlushSentinel)
    await parts.aclose()
    assert closed.is_set()


async def test_a_failure_comes_through() -> None:
    async def failing() -> AsyncIterator[str]:
        yield "One"
        raise LookupError

    parts = in_phrases(failing())
    assert await anext(parts) == "One"
    with pytest.raises(LookupError):
        await anext(parts)
