"""Nothing is left of many short calls: no task, no object of theirs, no memory."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio
from livekit.agents import AgentSession

from core.models import AgentConfig
from core.streams.messages import SocketAttach
from tests.support.stream_rig import StreamWorker
from tests.worker.test_call import CONTROL
from worker.call import Call
from worker.streams.line import StreamLine
from worker.streams.link import Link
from worker.streams.session import StreamSession

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

CALLS, AT_ONCE = 200, 20
WARM_UP = 20
MAY_GROW_BYTES = 40_000_000
QUIET = AgentConfig(name="Quiet", voice_mode="hosted")
OF_A_CALL = {Call, StreamLine, StreamSession, Link, AgentSession}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker() -> AsyncIterator[StreamWorker]:
    async with StreamWorker.run(CONTROL.model_copy(deep=True)) as running:
        yield running


async def short_calls(worker: StreamWorker, count: int) -> None:
    async def call() -> None:
        record = await worker.record(QUIET, direction="web")
        token = worker.tokens.for_call(record.id)
        socket = await worker.connect(record.id, SocketAttach(token=token, resume_token="x"))
        await record.event("call.answered")
        await socket.close()
        await record.event("agent.left")
        del worker.gateway.calls[record.id]

    for _ in range(0, count, AT_ONCE):
        await asyncio.gather(*(call() for _ in range(AT_ONCE)))
    await worker.server.drain(10)
    worker.server.draining = False


def left() -> Counter[str]:
    gc.collect()
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in OF_A_CALL)


async def test_two_hundred_short_calls(worker: StreamWorker) -> None:
    await short_calls(worker, WARM_UP)
    process = psutil.Process()
    tasks, memory, objects = len(asyncio.all_tasks()), process.memory_info().rss, left()
    await short_calls(worker, CALLS)
    # Libraries hold a few of the last calls for some seconds; they do not add up.
    assert all(count < AT_ONCE for count in (left() - objects).values())
    assert len(asyncio.all_tasks()) <= tasks + 2  # of the test's own servers and pools
    assert process.memory_info().rss - memory < MAY_GROW_BYTES
