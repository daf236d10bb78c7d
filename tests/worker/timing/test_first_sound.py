"""worker.timing.first_sound: a far end from which no sound comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from livekit import rtc

from worker.timing.first_sound import report_missing_sound
from worker.timing.turn_clock import TurnClock

pytestmark = [pytest.mark.unit, pytest.mark.asyncio]


class Rig:
    def __init__(self) -> None:
        self.posts: list[str] = []
        self.posted = asyncio.Event()
        self.sounded = asyncio.Event()
        self.listens = True

    def post(self, type: str, data: dict[str, int]) -> None:
        assert data["afterMs"] >= 0
        self.posts.append(type)
        self.posted.set()

    async def report(self, patience_s: float) -> None:
        await report_missing_sound(
            self.sounded,
            self.post,
            listens=lambda: self.listens,
            patience_s=patience_s,
            step_s=0.001,
        )


async def test_a_sound_in_time_is_not_worth_an_event() -> None:
    rig = Rig()
    rig.sounded.set()
    await rig.report(60)
    assert rig.posts == []


async def test_none_and_then_one() -> None:
    rig = Rig()
    task = asyncio.create_task(rig.report(0.003))
    await rig.posted.wait()
    assert rig.posts == ["audio.missing"]
    rig.sounded.set()
    await task
    assert rig.posts == ["audio.missing", "audio.received"]


async def test_only_the_time_in_which_the_agent_listens_counts() -> None:
    rig = Rig()
    rig.listens = False
    task = asyncio.create_task(rig.report(0.001))
    for _ in range(5):
        await asyncio.sleep(0.002)
    assert rig.posts == []
    rig.listens = True
    await rig.posted.wait()
    rig.sounded.set()
    await task


async def test_what_a_line_plays_that_carries_nothing_is_no_sound() -> None:
    """WebRTC plays samples of 1 and 2; the softest noise of a telephone line is 8."""
    clock = TurnClock(0.3)

    async def frames() -> AsyncIterator[rtc.AudioFrame]:
        for sample in (0, -2, -8):
            yield rtc.AudioFrame(np.full(320, sample, np.int16).tobytes(), 16_000, 1, 320)

    heard = [clock.sounded.is_set() async for _ in clock.listen(frames())]
    assert heard == [False, False, True]
