"""Tests of worker.streams.line that need no session and no socket."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from worker.streams.line import StreamLine
from worker.streams.twilio_wire import TwilioWire

pytestmark = pytest.mark.unit


class Session:
    """A session whose start takes until ``go_on``."""

    def __init__(self) -> None:
        self.input, self.output = SimpleNamespace(audio=None), SimpleNamespace(audio=None)
        self.began, self.go_on = asyncio.Event(), asyncio.Event()
        self.started = False

    def on(self, event: str, call: object) -> None: ...

    async def start(self, agent: object) -> None:
        self.began.set()
        await self.go_on.wait()
        self.started = True


async def test_a_start_that_has_begun_is_finished_before_a_cancellation_counts() -> None:
    """livekit-agents closes nothing of a session whose start was cancelled half-way."""
    line, session = StreamLine(TwilioWire()), Session()
    starting = asyncio.create_task(line.start(cast(Any, session), cast(Any, None)))
    await session.began.wait()
    starting.cancel()
    await asyncio.sleep(0)
    assert not starting.done()
    session.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert session.started
