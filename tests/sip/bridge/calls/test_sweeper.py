"""sip.bridge.calls.sweeper: ended calls are freed, with their rooms' native halves."""

from __future__ import annotations

import asyncio
import weakref

import pytest

from sip.bridge.calls.sweeper import Sweeper

pytestmark = pytest.mark.unit


class Circle:
    """A reference cycle, like that of a room and its handlers."""

    def __init__(self) -> None:
        self.itself = self


async def test_ended_calls_are_let_go() -> None:
    circle = Circle()
    gone = asyncio.Event()
    weakref.finalize(circle, gone.set)
    ended = Sweeper(after_s=0)
    ended.soon()
    del circle
    async with asyncio.timeout(5):
        await gone.wait()
    ended.close()


async def test_a_service_that_has_closed_searches_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []
    monkeypatch.setattr("gc.collect", lambda: searches.append(1))
    ended = Sweeper(after_s=0)
    ended.soon()
    ended.close()
    ended.soon()
    await asyncio.sleep(0.01)
    assert searches == []
