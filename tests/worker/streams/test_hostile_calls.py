"""A flood of malformed and hostile messages on a session: bounded, and harmless to others."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator

import aiohttp
import psutil
import pytest
import pytest_asyncio

from core.models import AgentConfig
from core.streams.messages import SocketAttach, TwilioAttach
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from tests.worker.streams.hostile import not_objects
from tests.worker.test_call import CONTROL

pytestmark = [
    pytest.mark.providers,
    pytest.mark.attack,
    pytest.mark.asyncio(loop_scope="session"),
]

QUIET = AgentConfig(name="Quiet", voice_mode="hosted")
COUNT = 10_000
AT_ONCE = 1400
"""Half a minute of Twilio's messages, as after a network that was away."""
TOLERATED = 20
INVALID_DATA = 1007
MAY_GROW_BYTES = 30_000_000

MEDIA = {"track": "inbound", "chunk": "1", "timestamp": "0", "payload": "/" * 216}
TO_TWILIO = [
    json.dumps(message)
    for message in [
        {"event": "media", "streamSid": "MZ1", "media": MEDIA},  # all but the first are late
        {"event": "media", "streamSid": "MZ1", "media": {**MEDIA, "track": "outbound"}},
        {"event": "mark", "streamSid": "MZ2", "mark": {"name": "g0.1"}},
        {"event": "mark", "mark": {"name": "never sent"}},
        {"event": "connected", "protocol": "Call", "version": "1.0.0"},
        {"event": "clear", "streamSid": "MZ1"},
        {"event": "x" * 64, "stop": {"event": "stop"}},
    ]
]
TO_SOCKET = [
    json.dumps(message)
    for message in [
        {"type": "mark", "name": "g0.1"},
        {"type": "tool_result", "id": "call_1", "result": {"a": [1] * 50}},
        {"type": "x" * 64},
        {"type": "ping"},
        {"type": "auth", "token": "x" * 1000},
        {"type": "session.update", "variables": {"a": "b"}},
    ]
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker() -> AsyncIterator[StreamWorker]:
    async with StreamWorker.run(CONTROL.model_copy(deep=True), grace_s=0.2) as running:
        yield running


async def attached(
    worker: StreamWorker, kind: str
) -> tuple[KeptCall, aiohttp.ClientWebSocketResponse, asyncio.Task[None]]:
    """Return a call, its socket, and what reads everything from it until it is closed."""
    call = await worker.record(QUIET)
    token = worker.tokens.for_call(call.id)
    attach = (
        TwilioAttach(token=token, stream_sid="MZ1")
        if kind == "twilio"
        else SocketAttach(token=token, resume_token="for-the-client")
    )
    socket = await worker.connect(call.id, attach)
    reading = asyncio.create_task(drained(socket))
    await call.event("call.answered")
    return call, socket, reading


async def drained(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


@pytest.mark.parametrize("kind", ["twilio", "socket"])
async def test_ten_thousand_messages(worker: StreamWorker, kind: str) -> None:
    call, socket, reading = await attached(worker, kind)
    malformed, harmless = not_objects(), TO_TWILIO if kind == "twilio" else TO_SOCKET
    process = psutil.Process()
    before = process.memory_info().rss

    for text in itertools.islice(itertools.cycle(malformed), TOLERATED):
        await socket.send_str(text)
    for text in itertools.islice(itertools.cycle(harmless), AT_ONCE):
        await socket.send_str(text)
    key = {"event": "dtmf", "dtmf": {"track": "inbound_track", "digit": "7"}}
    await socket.send_json(key if kind == "twilio" else {"type": "dtmf", "digit": "7"})
    await call.event("dtmf.received")
    assert not socket.closed, "the call goes on"
    try:
        for text in itertools.islice(itertools.cycle(harmless), COUNT):
            await socket.send_str(text)
    except ConnectionError:
        pass  # the worker closes it long before the last one
    await asyncio.wait_for(reading, 10)
    assert socket.close_code == INVALID_DATA
    assert process.memory_info().rss - before < MAY_GROW_BYTES
    await ended_as_lost(call)


async def ended_as_lost(call: KeptCall) -> None:
    await call.event("agent.left")
    assert [event.data["cause"] for event in call.of("call.ended")] == ["leg_lost"]


@pytest.mark.parametrize("kind", ["twilio", "socket"])
async def test_ten_thousand_malformed_messages(worker: StreamWorker, kind: str) -> None:
    call, socket, reading = await attached(worker, kind)
    try:
        for text in itertools.islice(itertools.cycle(not_objects()), COUNT):
            await socket.send_str(text)
    except ConnectionError:
        pass  # the worker closes it long before the last one
    await asyncio.wait_for(reading, 10)
    assert socket.close_code == INVALID_DATA
    await ended_as_lost(call)


async def test_the_worker_serves_the_next_call(worker: StreamWorker) -> None:
    async with worker.session(QUIET) as (call, far):
        await far.send("text", text="What are your opening hours?")
        await call.until(lambda told: told.turns and told.turns[0].response, "an answer")
