"""Tests of gateway.calls.following: a dial is followed and its outcome is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from core.errors import Unavailable
from core.events import ended
from core.models import CallEvent
from gateway.calls.dispatcher import Arrival
from gateway.calls.following import Following
from gateway.calls.timeline import Timeline, Watch
from gateway.keys import TIMELINE
from gateway.store.call_status import Call
from sip.dial import ANSWERED, Dial, DialOutcome
from tests.support.inprocess import Running, running, settings_in

pytestmark = pytest.mark.store

BUSY = DialOutcome(status="busy", reason="dial_busy", sip_status_code=486)
CANCELED = DialOutcome(status="canceled", reason="canceled")


class Phone:
    """A stand-in for a dial, with the given statuses; ``done`` lists what was asked of it."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = list(statuses) or ["active"]
        self.far_end: asyncio.Future[DialOutcome] = asyncio.get_running_loop().create_future()
        self.done: list[str] = []

    async def call_status(self) -> str:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    async def verdict(self) -> DialOutcome:
        return await asyncio.shield(self.far_end)

    async def cancel(self) -> None:
        self.done.append("cancel")
        if not self.far_end.done():
            self.far_end.set_result(CANCELED)

    async def aclose(self) -> None:
        self.done.append("close")


class NoAgent:
    async def seen(self) -> bool:
        return False


class Followed:
    """A call with its dial, and the events that were written."""

    def __init__(self, gateway: Running, call: Call, *statuses: str) -> None:
        self.call = call
        self.phone = Phone(*statuses)
        self.written: list[object] = []
        self.rang = asyncio.Event()
        self.fault: Exception | None = None
        self._timeline: Timeline = gateway.app[TIMELINE]
        self._watch = Watch(call.id, gateway.store, self._timeline)

    async def run(self, arrival: NoAgent | None = None) -> DialOutcome | None:
        following = Following(
            cast(Dial, self.phone),
            self._watch,
            ringing=self._ringing,
            verdict=self._verdict,
            arrival=cast(Arrival | None, arrival),
        )
        async with asyncio.timeout(10):
            return await following.run()

    async def over(self) -> None:
        end = CallEvent(type="call.ended", data=ended("canceled", "canceled"))
        await self._timeline.append(self.call.id, [end], "gateway")

    async def _ringing(self) -> None:
        self.rang.set()
        if self.fault is not None:
            raise self.fault
        self.written.append("ringing")

    async def _verdict(self, outcome: DialOutcome) -> None:
        self.written.append(outcome)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path)) as gateway:
        yield gateway


async def test_it_rings_and_is_refused(gateway: Running) -> None:
    followed = Followed(gateway, await gateway.call(), "ringing")
    running = asyncio.create_task(followed.run())
    await followed.rang.wait()
    followed.phone.far_end.set_result(BUSY)
    assert await running == BUSY
    assert followed.written == ["ringing", BUSY]
    assert followed.phone.done == ["close"]


async def test_it_is_answered_at_once(gateway: Running) -> None:
    followed = Followed(gateway, await gateway.call())
    followed.phone.far_end.set_result(ANSWERED)
    assert await followed.run() == ANSWERED
    assert (followed.written, followed.phone.done) == ([ANSWERED], ["close"])


async def test_the_call_is_over_while_it_rings(gateway: Running) -> None:
    followed = Followed(gateway, await gateway.call(), "ringing")
    running = asyncio.create_task(followed.run())
    await followed.rang.wait()
    await followed.over()
    assert await running == CANCELED
    assert followed.phone.done == ["cancel", "close"]


async def test_the_call_is_over_when_it_is_answered(gateway: Running) -> None:
    """The verdict is written, and the answered phone is hung up rather than left alone."""
    followed = Followed(gateway, await gateway.call(), "dialing")
    followed.phone.far_end.set_result(ANSWERED)
    await followed.over()
    assert await followed.run() is None
    assert followed.written == [ANSWERED]
    assert followed.phone.done[-2:] == ["cancel", "close"]


async def test_no_agent_comes(gateway: Running) -> None:
    followed = Followed(gateway, await gateway.call(), "ringing")
    assert await followed.run(NoAgent()) == CANCELED
    assert followed.phone.done == ["cancel", "close"]


async def test_ringing_that_cannot_be_written_costs_no_verdict(gateway: Running) -> None:
    followed = Followed(gateway, await gateway.call(), "ringing")
    followed.fault = Unavailable("away", code="STORE_UNAVAILABLE")
    running = asyncio.create_task(followed.run())
    await followed.rang.wait()
    followed.phone.far_end.set_result(BUSY)
    assert await running == BUSY
    assert followed.written == [BUSY]


async def test_one_who_stops_following_lets_go_of_the_dial(gateway: Running) -> None:
    followed = Followed(gateway, await gateway.call(), "ringing")
    running = asyncio.create_task(followed.run())
    await followed.rang.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert followed.phone.done == ["close"]
