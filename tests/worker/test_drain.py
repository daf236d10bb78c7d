"""How job processes learn that their worker is to stop."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection

import pytest

from worker.drain import Drain, drained

pytestmark = pytest.mark.unit


async def test_the_event_is_set_once_the_drain_begins() -> None:
    drain = Drain()
    event = drained(drain.told)
    await asyncio.sleep(0)
    assert not event.is_set()
    drain.begin()
    drain.begin()
    async with asyncio.timeout(5):
        await event.wait()
    late = drained(drain.told)
    async with asyncio.timeout(5):
        await late.wait()
    drain.told.close()


def _job(told: Connection, ready: Connection) -> None:
    async def wait() -> None:
        event = drained(told)
        ready.send("ready")
        async with asyncio.timeout(30):
            await event.wait()

    asyncio.run(wait())


async def test_a_job_process_is_told() -> None:
    """livekit-agents starts its processes with a fork server."""
    drain = Drain()
    ready, readies = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("forkserver").Process(
        target=_job, args=(drain.told, readies)
    )
    process.start()
    readies.close()
    try:
        assert await asyncio.to_thread(ready.recv) == "ready"
        assert process.is_alive()
        drain.begin()
        await asyncio.to_thread(process.join, 20)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
        ready.close()
        drain.told.close()
