"""Lost agents of sessions: who takes over, and that nobody takes over twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from core.events import ended
from core.models import CallEvent, now
from core.recovery import MOST_LOST, Lost
from core.streams.messages import LEAVES, TAKEN_OVER, TwilioAttach
from core.tokens import TokenIssuer
from gateway.calls.streams.agents import Overtaken
from gateway.keys import TIMELINE, call_services
from gateway.store.streams.sessions import Session
from tests.support.inprocess import SECRET
from tests.support.stream_worker import StreamWorker, WorkerSession, stream_worker
from tests.support.twilio_calls import CONNECTED, StreamRig, Twiml, close_code, start, stream_rig

pytestmark = pytest.mark.store


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[StreamRig]:
    async with stream_rig(tmp_path) as rig:
        yield rig


class Streaming:
    """A stream of Twilio's, on its first worker; ``other`` is free, too."""

    def __init__(self, rig: StreamRig, other: StreamWorker, call_id: str, socket: Any) -> None:
        self.rig = rig
        self.other = other
        self.call_id = call_id
        self.socket = socket

    @property
    def session(self) -> WorkerSession:
        return self.rig.worker.sessions[self.call_id]

    async def goes_on(self, epoch: int = 1, worker: StreamWorker | None = None) -> WorkerSession:
        """The next agent is there, and Twilio's socket is now its."""
        worker = worker or self.other
        async with asyncio.timeout(10):
            while (session := worker.sessions.get(self.call_id)) is None or (  # noqa: ASYNC110
                session.attaches[-1]["epoch"] < epoch
            ):
                await asyncio.sleep(0.01)
        attach = session.attaches[-1]
        assert (attach["epoch"], attach["resume"], attach["moved"]) == (epoch, False, True)
        assert TokenIssuer(SECRET).agent_of(attach["token"]) == (self.call_id, epoch)
        await session.send(b"welcome back")
        assert await self.socket.receive_str() == "welcome back"
        await self.socket.send_str("thank you")
        async with asyncio.timeout(10):
            while await session.frames.get() != b"thank you":
                pass
        return session

    async def lost(self) -> list[dict[str, Any]]:
        events = await self.rig.own.store.events(self.call_id, types=["agent.lost"])
        return [event.data for event in events]


@pytest.fixture
async def streaming(rig: StreamRig) -> AsyncIterator[Streaming]:
    async with contextlib.AsyncExitStack() as stack:
        answer = await rig.create(await rig.agent())
        token = Twiml.of(answer["twiml"]).token
        socket = await stack.enter_async_context(rig.stream(CONNECTED, start(token)))
        call_id = answer["sessionId"]
        await rig.worker_session(call_id)
        other = await stack.enter_async_context(stream_worker(rig.own))
        yield Streaming(rig, other, call_id, socket)


async def test_a_worker_that_is_killed(streaming: Streaming) -> None:
    before = now()
    await streaming.rig.worker.stop()
    await streaming.goes_on()
    (lost,) = await streaming.lost()
    assert (lost["epoch"], lost["why"]) == (0, "vanished")
    seen_at = CallEvent.model_validate({"type": "x", "at": lost["seenAt"]}).at
    assert abs(seen_at - before) < timedelta(seconds=5)


async def test_a_worker_that_has_no_such_session(streaming: Streaming) -> None:
    """It may be the next agent's, too."""
    await streaming.rig.worker.beat(streaming.rig.own, active=0)
    await streaming.other.beat(streaming.rig.own, draining=True)
    streaming.rig.worker.sessions.pop(streaming.call_id).drop()
    await streaming.goes_on(worker=streaming.rig.worker)


async def test_a_broken_connection_alone_loses_no_agent(streaming: Streaming) -> None:
    session = streaming.session
    session.drop()
    await streaming.rig.worker_session(streaming.call_id, sockets=2)
    assert (session.attaches[1]["resume"], session.attaches[1]["epoch"]) == (True, 0)
    assert await streaming.lost() == []


async def test_an_agent_that_leaves(streaming: Streaming) -> None:
    await streaming.session.close(LEAVES)
    await streaming.goes_on()
    assert [lost["why"] for lost in await streaming.lost()] == ["stopped"]


async def test_an_agent_that_leaves_a_call_that_is_over(streaming: Streaming) -> None:
    over = CallEvent(type="call.ended", data=ended("completed", "agent_hangup"))
    await streaming.rig.own.app[TIMELINE].append(streaming.call_id, [over], "gateway")
    await streaming.session.close(LEAVES)
    assert await close_code(streaming.socket) == 1000
    assert not streaming.other.sessions


async def test_a_loss_that_somebody_else_reports(streaming: Streaming) -> None:
    """Any gateway finds a worker whose heartbeats have stopped. The former agent is told."""
    recovery = call_services(streaming.rig.own.app).recovery
    session = streaming.session
    assert await recovery.lost(streaming.call_id, 0, Lost(why="vanished", seen_at=now()))
    assert await session.closes.get() == TAKEN_OVER
    await streaming.rig.worker.beat(streaming.rig.own, draining=True)
    await streaming.goes_on(worker=None if streaming.other.sessions else streaming.rig.worker)
    assert len(await streaming.lost()) == 1


async def test_a_worker_is_waited_for(streaming: Streaming) -> None:
    streaming.other.refusing = 503
    await streaming.rig.worker.stop()
    async with asyncio.timeout(10):
        while len(streaming.other.asked) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    streaming.other.refusing = None
    await streaming.goes_on()
    assert len(await streaming.lost()) == 1


async def test_too_many_are_lost(streaming: Streaming) -> None:
    workers = [streaming.rig.worker, streaming.other]
    for epoch in range(1, MOST_LOST + 1):
        former, following = workers
        former.sessions.pop(streaming.call_id).drop()
        await former.beat(streaming.rig.own, draining=True)
        await following.beat(streaming.rig.own)
        await streaming.goes_on(epoch, following)
        workers.reverse()
    workers[0].sessions.pop(streaming.call_id).drop()
    assert await close_code(streaming.socket) == 4404
    gone = ("failed", "agent_unavailable")  # no agent has answered the call
    async with asyncio.timeout(10):
        while await streaming.rig.verdict(streaming.call_id) != gone:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert len(await streaming.lost()) == MOST_LOST + 1


async def test_of_two_sockets_of_a_session_one_gets_the_next_agent(streaming: Streaming) -> None:
    """Twilio has connected again, and the first socket's gateway has not noticed yet."""
    rig, call_id = streaming.rig, streaming.call_id
    agents = call_services(rig.own.app).stream_sessions._agents
    session = Session(call_id=call_id, kind="twilio")
    attach = TwilioAttach(stream_sid="MZ1", resume=True)
    seats = [await agents.attach(session, attach) for _ in range(2)]
    assert [seat.epoch for seat in seats] == [0, 0]
    call = rig.worker.sessions.pop(call_id)
    try:
        got = await asyncio.gather(
            *(seat.next("broke", now()) for seat in seats), return_exceptions=True
        )
    finally:
        for seat in seats:
            await seat.socket.close()
        call.drop()
    # The relay of ``streaming`` is a third one.
    assert sum(isinstance(each, Overtaken) for each in got) >= 1
    assert sum(len(worker.sessions) for worker in (rig.worker, streaming.other)) == 1
    assert len(await streaming.lost()) == 1


async def test_the_clients_frames_wait_for_the_agent(streaming: Streaming) -> None:
    streaming.other.refusing = 503
    await streaming.rig.worker.stop()
    async with asyncio.timeout(10):
        while not streaming.other.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    key = {"event": "dtmf", "dtmf": {"digit": "7"}}
    await streaming.socket.send_str(json.dumps(key))
    streaming.other.refusing = None
    async with asyncio.timeout(10):
        session = await streaming.other.session()
        assert json.loads(await session.frames.get()) == key


async def test_the_caller_hangs_up_while_no_agent_is_there(streaming: Streaming) -> None:
    streaming.other.refusing = 503
    await streaming.rig.worker.stop()
    async with asyncio.timeout(10):
        while not streaming.other.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await streaming.socket.close(code=1000)
    async with asyncio.timeout(10):
        while not (await streaming.rig.record(streaming.call_id)).ended:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await streaming.rig.verdict(streaming.call_id) == ("completed", "user_hangup")
