"""How a main process notices that its jobs die or hang; the jobs are real processes."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest

from core.recovery import Why
from worker.pulse.beat import Beat, Pulses, tell
from worker.pulse.heart import Heart
from worker.pulse.standstill import Standstill
from worker.pulse.watch import Watch

pytestmark = pytest.mark.unit

FORKED = multiprocessing.get_context("forkserver")


def _job(told: Connection, orders: Connection, job_id: str, every_s: float, still: bool) -> None:
    """Beat until told to end."""

    async def live() -> None:
        heart = Heart(
            told,
            job_id,
            2,
            call_id=lambda: "call_1",
            still=lambda: "input" if still else None,
            every_s=every_s,
        )
        heart.start()
        standstill = Standstill()
        standstill.start()
        orders.send("ready")
        loop = asyncio.get_running_loop()
        with standstill.tells(lambda seconds: orders.send(("woke", seconds))):
            if await loop.run_in_executor(None, orders.recv) == "over":
                await heart.stop()

    asyncio.run(live())


class Job:
    def __init__(self, process: BaseProcess, orders: Connection) -> None:
        self.process = process
        self.orders = orders
        assert process.pid is not None
        self.pid: int = process.pid

    async def hears(self, order: str) -> None:
        self.orders.send(order)
        await asyncio.to_thread(self.process.join, 20)
        assert self.process.exitcode == 0

    async def says(self) -> object:
        async with asyncio.timeout(20):
            return await asyncio.to_thread(self.orders.recv)


class Worker:
    """A main process (the test's own) with its jobs."""

    def __init__(self) -> None:
        self.pulses = Pulses()
        self.lost: asyncio.Queue[tuple[Beat, Why, str]] = asyncio.Queue()
        self.watch = Watch(self.pulses, self._lost)
        self.jobs: list[Job] = []

    async def _lost(self, beat: Beat, why: Why, detail: str) -> None:
        self.lost.put_nowait((beat, why, detail))

    async def job(self, job_id: str = "AJ_1", *, every_s: float = 0.5, still: bool = False) -> Job:
        ours, theirs = multiprocessing.Pipe()
        process = FORKED.Process(
            target=_job, args=(self.pulses.told, theirs, job_id, every_s, still)
        )
        process.start()
        theirs.close()
        job = Job(process, ours)
        self.jobs.append(job)
        assert await job.says() == "ready"
        return job

    async def loss(self) -> tuple[Why, str]:
        async with asyncio.timeout(20):
            beat, why, detail = await self.lost.get()
        assert (beat.call_id, beat.epoch) == ("call_1", 2)
        assert time.time() - 20 < beat.seen_at <= time.time()
        return why, detail

    async def loses_nothing(self) -> None:
        """Wait until another job has died, whose loss is noticed later than those before it."""
        other = await self.job("AJ_other")
        os.kill(other.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            beat, why, _ = await self.lost.get()
        assert (beat.job_id, why) == ("AJ_other", "killed")


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    running = asyncio.create_task(worker.watch.run())
    yield worker
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await worker.watch.aclose()
    for job in worker.jobs:
        job.process.kill()
        job.process.join()
        job.process.close()
        job.orders.close()
    worker.pulses.close()


async def test_a_job_that_is_killed(worker: Worker) -> None:
    job = await worker.job()
    began = asyncio.get_running_loop().time()
    os.kill(job.pid, signal.SIGKILL)
    assert await worker.loss() == ("killed", "")
    noticed_s = asyncio.get_running_loop().time() - began
    assert noticed_s < 1.9, "not by the missing pulse"


async def test_a_job_that_is_over(worker: Worker) -> None:
    job = await worker.job()
    await job.hears("over")
    await worker.loses_nothing()


async def test_a_job_that_ends_without_a_word(worker: Worker) -> None:
    job = await worker.job()
    await job.hears("end")
    assert await worker.loss() == ("killed", "")


async def test_a_job_that_is_frozen_is_killed(worker: Worker) -> None:
    job = await worker.job()
    os.kill(job.pid, signal.SIGSTOP)
    assert await worker.loss() == ("hung", "no pulse")
    await asyncio.to_thread(job.process.join, 20)
    assert job.process.exitcode == -signal.SIGKILL


async def test_a_job_whose_audio_stands_still_is_killed(worker: Worker) -> None:
    job = await worker.job(every_s=0.05, still=True)
    assert await worker.loss() == ("hung", "no audio input")
    await asyncio.to_thread(job.process.join, 20)
    assert job.process.exitcode == -signal.SIGKILL


async def test_without_a_kernel_that_tells_of_the_end_the_pulse_does(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    killed = await worker.job()
    os.kill(killed.pid, signal.SIGKILL)
    await asyncio.to_thread(killed.process.join, 20)
    assert await worker.loss() == ("killed", "")
    frozen = await worker.job("AJ_2")
    os.kill(frozen.pid, signal.SIGSTOP)
    assert await worker.loss() == ("hung", "no pulse")


async def test_a_main_process_that_stood_still_blames_no_job(worker: Worker) -> None:
    job = await worker.job()
    dead = await worker.job("AJ_dead")
    os.kill(dead.pid, signal.SIGKILL)
    time.sleep(3.5)  # noqa: ASYNC251  the event loop stands still, as the whole process would
    assert (await worker.loss())[0] == "killed"
    await worker.loses_nothing()
    assert job.process.is_alive()


async def test_a_job_learns_that_it_stood_still(worker: Worker) -> None:
    """Together with its main process, as in a machine that was suspended."""
    job = await worker.job()
    os.kill(job.pid, signal.SIGSTOP)
    time.sleep(3.5)  # noqa: ASYNC251
    os.kill(job.pid, signal.SIGCONT)
    woke = await job.says()
    assert isinstance(woke, tuple) and woke[0] == "woke"
    assert woke[1] > 2
    await worker.loses_nothing()
    assert job.process.is_alive()


async def test_a_full_pipe_holds_up_no_job() -> None:
    pulses = Pulses()
    beat = Beat("alive", os.getpid(), "AJ_1", "call_1", 0, time.time())
    told = 0
    while tell(pulses.told, beat):
        told += 1
    assert told > 300
    assert len([*pulses.read()]) == told
    pulses.close()


async def test_a_main_process_that_is_gone_holds_up_no_job() -> None:
    pulses = Pulses()
    told = os.dup(pulses.told.fileno())
    with contextlib.closing(Connection(told, readable=False)) as kept:
        pulses.close()
        assert tell(kept, Beat("over", os.getpid(), "AJ_1", "call_1", 0, time.time()))
