"""Tests of core.tasks.first_of: the first result, errors, and the end of the other awaitables."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from core.tasks.first_of import first_of

pytestmark = pytest.mark.unit


class Work:
    """A coroutine that ends when it is told to, and notes how it ended."""

    def __init__(self, *, last: str = "", fails: Exception | None = None) -> None:
        self.go = asyncio.Event()
        self.ended: list[str] = []
        self._last, self._fails = last, fails

    async def run(self) -> str:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # cleaning up takes a turn of the loop
            self.ended.append("cancelled")
            if self._fails is not None:
                raise self._fails from None
            if self._last:
                return self._last
            raise
        self.ended.append("done")
        return "result"


def future() -> asyncio.Future[int]:
    return asyncio.get_running_loop().create_future()


async def test_the_first_ones_result_and_none_for_the_others() -> None:
    quick, slow, other = Work(), Work(), future()
    quick.go.set()
    assert await first_of(slow.run(), quick.run(), other) == (None, "result", None)
    assert (quick.ended, slow.ended) == (["done"], ["cancelled"]), "it has ended, too"


async def test_a_future_is_its_owners() -> None:
    lent, work = future(), Work()
    task = asyncio.create_task(Work().run())
    work.go.set()
    await first_of(work.run(), lent, task)
    assert not lent.done() and not task.done()
    task.cancel()


async def test_all_that_is_done_at_once_counts() -> None:
    one, two = future(), future()
    one.set_result(1)
    two.set_result(2)
    assert await first_of(one, two) == (1, 2)


async def test_after_the_deadline_nothing_was_first() -> None:
    work, lent = Work(), future()
    assert await first_of(work.run(), lent, timeout=0) == (None, None)
    assert work.ended == ["cancelled"] and not lent.done()


async def test_what_is_there_already_is_in_time() -> None:
    lent = future()
    lent.set_result(1)
    assert await first_of(lent, Work().run(), timeout=0) == (1, None)


async def test_an_error_is_raised() -> None:
    lent, work = future(), Work()
    lent.set_exception(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await first_of(work.run(), lent)
    assert work.ended == ["cancelled"]


async def test_when_it_is_cancelled_its_own_have_ended_before() -> None:
    work, lent = Work(), future()
    waiting = asyncio.create_task(first_of(work.run(), lent))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.ended == ["cancelled"] and not lent.done()


async def test_cancelled_twice_it_still_waits_for_its_own() -> None:
    swept = asyncio.Event()

    async def stubborn() -> None:
        while not swept.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await swept.wait()

    waiting = asyncio.create_task(first_of(stubborn(), future()))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    swept.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_loser_that_ends_well_all_the_same_has_lost() -> None:
    lent, work = future(), Work(last="too late")
    lent.set_result(1)
    assert await first_of(work.run(), lent) == (None, 1)


async def test_an_error_of_a_loser_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    lent, work = future(), Work(fails=ValueError("on the way out"))
    lent.set_result(1)
    with caplog.at_level(logging.WARNING):
        assert await first_of(work.run(), lent) == (None, 1)
    assert "a wait failed while it was cancelled" in caplog.text
    assert "on the way out" in caplog.text
