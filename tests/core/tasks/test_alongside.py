from __future__ import annotations

import asyncio

import pytest

from core.tasks.alongside import alongside

pytestmark = pytest.mark.unit


async def test_it_is_cancelled_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    async def rounds() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with alongside(rounds(), "news"):
        await asyncio.sleep(0)
        assert not ended.is_set()
    assert ended.is_set()
    assert not caplog.records


async def test_what_it_failed_with_is_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    failed = asyncio.Event()

    async def fail() -> None:
        failed.set()
        raise RuntimeError("odd")

    async with alongside(fail(), "news"):
        await failed.wait()
    (record,) = caplog.records
    assert record.exc_info is not None and record.__dict__["work"] == "news"
