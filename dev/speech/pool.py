"""Recognisers in separate processes, so that no event loop waits for a decoder."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from core.audio import Pcm
from dev.speech.espeak import synthesize
from dev.speech.sphinx import Recognition, Recognizer

_T = TypeVar("_T")


class RecognizerPool:
    """``async with RecognizerPool(phrases) as pool: await pool.recognize(pcm, 8000)``.

    Each process has one recogniser, which is loaded and warm when the block is entered
    (after about a second). Cancelling ``recognize`` is safe: its process serves the next
    one when the decoder is done. If a process dies, its ``recognize`` raises
    BrokenProcessPool, and the process is replaced.
    """

    def __init__(self, phrases: Sequence[str] = (), processes: int = 2) -> None:
        self._phrases = tuple(phrases)
        self._processes = processes
        self._all: list[ProcessPoolExecutor] = []
        self._idle: asyncio.Queue[ProcessPoolExecutor] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        for _ in range(self._processes):
            self._add()
        try:
            await self.expect(self._phrases)
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self._stop))

    async def expect(self, phrases: Sequence[str]) -> None:
        """Set the phrases to recognise; return when every process is ready."""
        self._phrases = tuple(phrases)
        warmed = [executor.submit(_expect, self._phrases) for executor in self._all]
        await asyncio.gather(*map(asyncio.wrap_future, warmed))

    async def recognize(self, pcm: Pcm, sample_rate: int, *, partial: bool = False) -> Recognition:
        """Call Recognizer.recognize in the next free process."""
        executor = await self._idle.get()
        return await self._run(executor, _recognize, self._phrases, pcm, sample_rate, partial)

    async def recognize_if_idle(self, pcm: Pcm, sample_rate: int) -> Recognition | None:
        """Return a partial recognition, or None at once if no process can be spared.

        If there are several processes, one is kept free for ``recognize``, whose caller waits.
        """
        if self._idle.qsize() < min(2, self._processes):
            return None
        executor = self._idle.get_nowait()
        return await self._run(executor, _recognize, self._phrases, pcm, sample_rate, True)

    async def _run(
        self, executor: ProcessPoolExecutor, work: Callable[..., _T], *arguments: object
    ) -> _T:
        loop = asyncio.get_running_loop()
        try:
            future = executor.submit(work, *arguments)
        except BaseException:
            self._replace(executor)
            raise

        # Not in a finally: the process stays busy if our wait is cancelled.
        def done(future: Future[_T]) -> None:
            broken = not future.cancelled() and isinstance(future.exception(), BrokenExecutor)
            give_back = self._replace if broken else self._idle.put_nowait
            if not loop.is_closed():
                loop.call_soon_threadsafe(give_back, executor)

        future.add_done_callback(done)
        return await asyncio.wrap_future(future)

    def _add(self) -> None:
        executor = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_start
        )
        self._all.append(executor)
        self._idle.put_nowait(executor)

    def _replace(self, executor: ProcessPoolExecutor) -> None:
        executor.shutdown(wait=False)
        if executor in self._all:
            self._all.remove(executor)
            self._add()

    def _stop(self) -> None:
        executors, self._all = self._all, []
        for executor in executors:
            executor.shutdown(wait=True, cancel_futures=True)


_recognizer: Recognizer | None = None
_expected: tuple[str, ...] | None = None


def _start() -> None:
    global _recognizer
    _recognizer = Recognizer()
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End with the parent, even if it is killed: the pool's pipes would not show that."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _expect(phrases: tuple[str, ...]) -> None:
    global _expected
    assert _recognizer is not None
    if phrases != _expected:
        _recognizer.expect(phrases)
        _expected = phrases
        if phrases:
            # The first utterance of a grammar is the slowest.
            speech = synthesize(phrases[0], sample_rate=8000)
            _recognizer.recognize(speech.pcm, speech.sample_rate)


def _recognize(phrases: tuple[str, ...], pcm: Pcm, rate: int, partial: bool) -> Recognition:
    _expect(phrases)
    assert _recognizer is not None
    return _recognizer.recognize(pcm, rate, partial=partial)
