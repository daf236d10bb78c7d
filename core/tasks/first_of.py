"""Waiting for the first of several things."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar, overload

log = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


@overload
async def first_of(
    first: Awaitable[A], second: Awaitable[B], /, *, timeout: float | None = None
) -> tuple[A | None, B | None]: ...


@overload
async def first_of(
    first: Awaitable[A],
    second: Awaitable[B],
    third: Awaitable[C],
    /,
    *,
    timeout: float | None = None,
) -> tuple[A | None, B | None, C | None]: ...


@overload
async def first_of(*waits: Awaitable[A], timeout: float | None = None) -> tuple[A | None, ...]: ...


async def first_of(*waits: Awaitable[Any], timeout: float | None = None) -> tuple[Any, ...]:
    """As ``asyncio.gather``, but until the first is done: the results, None for all others.

    After ``timeout`` (seconds) every result is None. Raises the error of the first, in the order
    of the arguments, that is done and has failed.

    A coroutine belongs to this wait: when the wait ends or is cancelled, so is the coroutine, and
    it has ended before this returns. A future or a task belongs to the caller and is only watched.
    Cancelling is safe. A result that arrives in that moment is lost, so pass a task for anything
    that must not be lost (a lock).
    """
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    own = [task for task, wait in zip(tasks, waits, strict=True) if task is not wait]
    done: set[asyncio.Future[Any]] = set()
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in own:
            task.cancel()
        for task, outcome in zip(
            own, await asyncio.gather(*own, return_exceptions=True), strict=True
        ):
            if isinstance(outcome, Exception) and task not in done:
                log.warning("a wait failed while it was cancelled", exc_info=outcome)
    return tuple(task.result() if task in done else None for task in tasks)
