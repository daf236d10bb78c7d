"""Tasks that a service owns."""

from __future__ import annotations

import asyncio

import pytest

from core.tasks.owned import Owned

pytestmark = pytest.mark.unit


async def test_it_knows_whose_tasks_run() -> None:
    tasks, over = Owned("following a call"), asyncio.Event()

    async def wait() -> None:
        await over.wait()

    tasks.begin("call_1", wait())
    assert "call_1" in tasks and "call_2" not in tasks
    over.set()
    async with asyncio.timeout(5):
        while "call_1" in tasks:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_failure_is_logged_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Owned("following a call")

    async def fail() -> None:
        raise ValueError("no such room")

    tasks.begin("call_1", fail())
    tasks.begin("call_2", asyncio.sleep(60))
    async with asyncio.timeout(5):
        while "call_1" in tasks:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert "call_2" in tasks
    (record,) = caplog.records
    assert record.getMessage() == "following a call failed"
    assert record.exc_info is not None and str(record.exc_info[1]) == "no such room"
    await tasks.aclose()


async def test_the_end_cancels_and_waits() -> None:
    tasks, ended = Owned("following a call"), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.set()

    tasks.begin("call_1", work())
    await asyncio.sleep(0)
    await tasks.aclose()
    assert ended.is_set() and "call_1" not in tasks
