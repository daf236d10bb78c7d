"""Agents of a session that follow one another: what the former one does, and what the next says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from core.models import AgentConfig, CallEvent, now
from core.shapes import rfc3339
from core.streams.messages import LEAVES, TAKEN_OVER, SocketAttach, TwilioAttach
from gateway.keys import TIMELINE
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from tests.worker.test_call import CONTROL

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

# As long as worker.pulse.standstill takes at most, and a margin.
NOTICED_S = 2.0
GREETER = AgentConfig(name="Greeter", voice_mode="hosted", begin_message="Hello.")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker() -> AsyncIterator[StreamWorker]:
    async with StreamWorker.run(CONTROL.model_copy(deep=True)) as running:
        running.server.start()
        yield running


async def lose(worker: StreamWorker, call: KeptCall) -> None:
    """Put on the record that the call's first agent is lost."""
    data = {"epoch": 0, "why": "vanished", "seenAt": rfc3339(now())}
    lost = CallEvent(id=f"{call.id}_lost_0", type="agent.lost", data=data)
    await worker.gateway._app[TIMELINE].append(call.id, [lost], "gateway")


async def code_of(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    async with asyncio.timeout(15):
        async for _ in socket:
            pass
    return socket.close_code


async def status_of(worker: StreamWorker, call: KeptCall, epoch: int) -> int:
    url = f"{worker.worker_url}/sessions/{call.id}?epoch={epoch}"
    headers = {"Authorization": f"Bearer {worker.tokens.for_stream(call.id)}"}
    async with worker.http.get(url, headers=headers) as response:
        return response.status


async def gone(worker: StreamWorker, count: int = 0) -> None:
    async with asyncio.timeout(15):
        while len(worker.server._running) > count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_an_agent_that_is_taken_over_changes_nothing(worker: StreamWorker) -> None:
    async with worker.session(GREETER) as (call, far):
        await far.close(TAKEN_OVER)
        left = await call.event("agent.left")
    assert left.data["cause"] == "agent_replaced"
    assert call.of("call.ended") == []
    assert call.of("stream.lost") == []
    await gone(worker)


async def test_one_that_learns_so_from_its_events_leaves_the_client_to_the_next(
    worker: StreamWorker,
) -> None:
    async with worker.session(GREETER) as (call, far):
        await lose(worker, call)
        await far.send("dtmf", digit="5")
        assert await far.closed() == LEAVES
        assert far.of("ended") == []
    assert call.of("call.ended") == []
    await gone(worker)


async def test_the_next_one_goes_on_with_the_clients_socket(worker: StreamWorker) -> None:
    """Here at the same worker, which has the former agent still."""
    async with worker.session(GREETER) as (call, far):
        first = worker.server._sessions[call.id]
        await lose(worker, call)
        attach = SocketAttach(
            token=worker.tokens.for_call(call.id, 1), epoch=1, moved=True, resume_token="t"
        )
        socket = await worker.connect(call.id, attach)
        assert await far.closed() == LEAVES
        assert worker.server._sessions[call.id] is not first
        assert [await status_of(worker, call, epoch) for epoch in (0, 1, 2)] == [404, 200, 404]
        events: list[dict[str, Any]] = []
        async with asyncio.timeout(15):
            while not events or events[-1]["type"] != "mark":
                message = await socket.receive()
                if message.type is aiohttp.WSMsgType.TEXT:
                    events.append(message.json())
        assert events[0] == {"type": "clear", "seq": 1_000_001}
        assert all(event["type"] != "ready" for event in events)
        assert events[-1]["name"].startswith("a1.")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await worker.connect(call.id, None, query="?resume=true&epoch=0")
        assert refused.value.status == 404
        await socket.close()
    await gone(worker)


async def test_twilio_drops_what_the_former_one_has_sent(worker: StreamWorker) -> None:
    call = await worker.record(GREETER)
    await lose(worker, call)
    token = worker.tokens.for_call(call.id, 1)
    attach = TwilioAttach(token=token, epoch=1, moved=True, stream_sid="MZ1")
    socket = await worker.connect(call.id, attach)
    message = await socket.receive(10)
    assert message.json() == {"event": "clear", "streamSid": "MZ1"}
    await socket.close()
    await gone(worker)


async def test_a_process_that_stood_still_learns_that_it_was_replaced(
    worker: StreamWorker,
) -> None:
    async with worker.session(GREETER) as (call, far):
        await lose(worker, call)
        time.sleep(NOTICED_S)  # noqa: ASYNC251  as SIGSTOP does
        assert await far.closed() == LEAVES
    assert call.of("call.ended") == []
    await gone(worker)
