"""``python -m worker streams`` as a process: its heartbeats, its drain, and what a kill leaves."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import pytest_asyncio

from core.models import AgentConfig, new_id
from core.recordings.config import Recording
from core.recordings.plan import RecordingPlan
from core.streams.messages import LEAVES
from core.tokens import TokenIssuer
from dev.providers import Providers
from dev.stack import Stack, StackOptions
from dev.stack.component import Component
from recordings.spool import RecordingFile
from tests.support.stream_rig import Sessions, worker_values
from tests.support.worker_gateway import KeptCall, WorkerGateway
from tests.worker.test_call import CONTROL

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

GREETER = AgentConfig(name="Greeter", voice_mode="hosted", begin_message="Hello.")


class Worker(Sessions):
    """A stream worker's process, and its gateway in this one."""

    def __init__(
        self,
        stack: Stack,
        gateway: WorkerGateway,
        tokens: TokenIssuer,
        http: aiohttp.ClientSession,
    ) -> None:
        super().__init__(stack.streams.address, gateway, tokens, http)
        self.stack = stack

    @property
    def component(self) -> Component:
        return self.stack.streams

    def signal(self, number: signal.Signals) -> None:
        self.component.process.signal(number)

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            return await self.component.process.wait()

    def spooled(self) -> list[Path]:
        return list((self.stack.settings.data_dir / "spool" / "worker").glob("*.jsonl"))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Poll for a condition on files, which have no events."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def refused(self) -> int:
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await self.connect(new_id("call"), None)
        return error.value.status


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running() -> AsyncIterator[Worker]:
    key, secret = "APIstreamtests", secrets.token_hex(32)
    async with (
        WorkerGateway.run(key, secret) as gateway,
        Providers(CONTROL.model_copy(deep=True)) as providers,
        aiohttp.ClientSession() as http,
    ):
        options = StackOptions(
            livekit=False,
            bridge=False,
            gateway=False,
            providers=False,
            worker=0,
            streams=1,
            values=worker_values(gateway, providers, key, secret),
        )
        async with Stack(options) as stack:
            yield Worker(stack, gateway, TokenIssuer(secret), http)


@pytest_asyncio.fixture(loop_scope="session")
async def worker(running: Worker) -> Worker:
    """The worker, without a call; what the previous test stopped is started again."""
    running.gateway.failing_with = None
    if not running.component.running:
        await running.component.start()
    await running.gateway.heartbeat(lambda beat: beat.active == 0, within_s=40)
    return running


async def test_a_drain_cuts_no_call(worker: Worker) -> None:
    beat = await worker.gateway.heartbeat(lambda beat: True)
    assert (beat.address, beat.draining) == (worker.worker_url, False)
    async with worker.session(GREETER) as (call, far):
        await worker.gateway.heartbeat(lambda beat: beat.active == 1)
        worker.signal(signal.SIGTERM)
        beat = await worker.gateway.heartbeat(lambda beat: beat.draining)
        assert (beat.address, beat.active) == (worker.worker_url, 1)
        assert await worker.refused() == HTTPStatus.SERVICE_UNAVAILABLE
        await far.lose()
        await far.attach(resume=True, last_seq=far.events[-1]["seq"])
        await far.say("thank you and goodbye")
        assert await far.closed() == 1000
        assert far.events[-1]["type"] == "ended"
        assert await worker.ended() == 0
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("completed", "agent_hangup")
    assert [turn.response for turn in call.turns] == ["Hello.", "Goodbye."]
    assert worker.spooled() == []


async def test_a_second_signal_cuts(worker: Worker) -> None:
    async with worker.session(GREETER) as (call, far):
        worker.signal(signal.SIGTERM)
        await worker.gateway.heartbeat(lambda beat: beat.draining)
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        assert await far.closed() == LEAVES  # another worker's agent goes on
        lost = await worker.gateway.lost(call)
    assert lost.data["why"] == "stopped"
    assert call.of("call.ended") == []
    assert "ended" not in {event["type"] for event in far.events}


async def test_what_a_killed_worker_could_not_deliver(worker: Worker) -> None:
    async with worker.session(GREETER) as (call, far):
        worker.gateway.failing_with = HTTPStatus.SERVICE_UNAVAILABLE
        await far.send("dtmf", digit="5")
        await worker.until(lambda: any("dtmf" in path.read_text() for path in worker.spooled()))
        await worker.component.process.kill()
        with contextlib.suppress(TimeoutError):
            await far.closed()
    assert call.of("dtmf.received") == []
    worker.gateway.failing_with = None
    await worker.component.start()
    await call.event("dtmf.received")
    await worker.until(lambda: not worker.spooled())


async def test_recordings_are_uploaded_while_it_runs_and_before_it_ends(worker: Worker) -> None:
    data, calls = worker.stack.settings.data_dir, []
    recorded = GREETER.model_copy(update={"recording": Recording(enabled=True)})
    for _ in range(2):
        calls.append(call := worker.gateway.new_call(recorded, record=True))
        await worker.gateway.record(call)
    keys = {call.id: await worker.gateway.recording_key(call) for call in calls}

    def begun(call: KeptCall) -> RecordingFile:
        plan = RecordingPlan(key=keys[call.id])
        file = RecordingFile.create(data / "spool" / "recordings", call.id, plan)
        file.append(np.zeros((1600, 2), np.int16))
        return file

    begun(calls[0]).close()
    stored = await calls[0].event("recording.stored")
    assert stored.data["durationMs"] == 100
    async with worker.session(GREETER) as (_, far):
        last = begun(calls[1])
        worker.signal(signal.SIGTERM)
        await worker.gateway.heartbeat(lambda beat: beat.draining)
        await far.say("thank you and goodbye")
        last.close()
        assert await worker.ended() == 0
    await calls[1].event("recording.stored")
    assert {path.stem for path in (data / "recordings").rglob("*.wav")} == {
        call.id for call in calls
    }
    assert not list((data / "spool" / "recordings").iterdir())
