"""Nobody listens unseen: requests at the same time, and those whose client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from core.errors import Unavailable
from core.models import CallEvent
from gateway.calls.timeline import Timeline
from gateway.recordings.listeners import Listeners

pytestmark = pytest.mark.unit


class SlowTimeline:
    """Writes when ``go`` is set, and fails while ``fails``."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.fails = False
        self.written: list[CallEvent] = []

    async def append(self, call_id: str, events: Sequence[CallEvent], source: str) -> None:
        await self.go.wait()
        if self.fails:
            raise Unavailable("away")
        self.written += events


class Rig:
    def __init__(self) -> None:
        self.timeline = SlowTimeline()
        self.listeners = Listeners(cast(Timeline, self.timeline), lambda: 0.0)

    def request(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.listeners.note("call_1", "acme", "api", "audio"))


async def _begin(*requests: asyncio.Task[None]) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(request.done() for request in requests)


async def test_requests_at_the_same_time_wait_for_one_event() -> None:
    rig = Rig()
    first, second = rig.request(), rig.request()
    await _begin(first, second)
    rig.timeline.go.set()
    await asyncio.gather(first, second, rig.request())
    assert len(rig.timeline.written) == 1


async def test_an_event_that_cannot_be_written_fails_all_of_them_and_the_next_tries_again() -> None:
    rig = Rig()
    first, second = rig.request(), rig.request()
    await _begin(first, second)
    rig.timeline.fails = True
    rig.timeline.go.set()
    for request in (first, second):
        with pytest.raises(Unavailable):
            await request
    rig.timeline.fails = False
    await rig.request()
    assert len(rig.timeline.written) == 1


async def test_a_client_that_leaves_takes_the_event_from_nobody() -> None:
    rig = Rig()
    first, second = rig.request(), rig.request()
    await _begin(first, second)
    first.cancel()
    rig.timeline.go.set()
    await second
    assert first.cancelled()
    assert len(rig.timeline.written) == 1
