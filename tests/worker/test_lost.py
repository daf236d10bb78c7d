"""An agent that is lost is reported by its worker, and another one takes over: real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from core.models import AgentConfig
from dev.providers import Control, Deepgram, OpenAI, Rule, Script, ToolCall
from tests.support.worker_gateway import KeptCall
from tests.support.worker_rig import SPARE, Phone, WorkerStack

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

STORY = "Once upon a time there was a restaurant at a corner, and it was open every evening. " * 3
CONTROL = Control(
    deepgram=Deepgram(phrases=["please tell me a story", "thank you and goodbye"]),
    openai=OpenAI(
        scripts={
            "default": Script(
                rules=[
                    Rule(keywords=["story"], reply=STORY),
                    Rule(keywords=["goodbye"], reply="Goodbye.", call=ToolCall(name="end_call")),
                ]
            )
        }
    ),
)
QUIET = AgentConfig(name="Quiet", voice_mode="hosted")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running() -> AsyncIterator[WorkerStack]:
    async with WorkerStack.run(CONTROL.model_copy(deep=True), spare=True) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def worker(running: WorkerStack) -> AsyncIterator[WorkerStack]:
    """A stack that runs with no call; the worker that the previous test killed is started again."""
    if not running.stack.worker.running:
        await running.stack.worker.start()
    yield running
    await running.end_calls()


def process_of(worker: WorkerStack, call: KeptCall) -> int:
    """Return the process id of the call's job: the one that has the call's spool open."""
    kept = worker.stack.settings.data_dir / "spool" / "worker"
    (path,) = [
        path
        for path in kept.glob("*.jsonl")
        if json.loads(path.read_text().splitlines()[0])["call_id"] == call.id
    ]
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(path):
                return int(link.parts[2])
    raise AssertionError("no process has the call's spool open")


async def replaced(worker: WorkerStack, call: KeptCall) -> None:
    """Send for the next agent, and wait until it is ready."""
    await worker.dispatch_again(call, worker.gateway.job(call, epoch=1), SPARE)
    await call.until(lambda told: len(told.of("agent.ready")) == 2, "the next agent")


async def goes_on(call: KeptCall, phone: Phone) -> None:
    """The caller talks to the next agent, which hangs up."""
    assert call.of("call.ended") == []
    await phone.say("Thank you, and goodbye!")
    end = await call.event("call.ended")
    assert end.data["reason"] == "agent_hangup"


async def test_a_job_that_is_killed(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, phone):
        os.kill(process_of(worker, call), signal.SIGKILL)
        lost = await worker.gateway.lost(call)
        assert lost.data["why"] == "killed"
        await replaced(worker, call)
        await goes_on(call, phone)


async def test_what_a_killed_job_kept_is_on_record_before_its_loss(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, phone):
        job = process_of(worker, call)
        worker.gateway.failing_with = 503
        for key in "42":
            await phone.room.local_participant.publish_dtmf(code=int(key), digit=key)
        kept = worker.stack.settings.data_dir / "spool" / "worker"
        await worker.until(
            lambda: any('"digit":"2"' in path.read_text() for path in kept.glob("*.jsonl")), "keys"
        )
        os.kill(job, signal.SIGKILL)
        await worker.until(lambda: "a loss is not reported" in worker.log, "first report")
        worker.gateway.failing_with = None
        await worker.gateway.lost(call)
        told = [event.type for event in await worker.gateway.everything(call)]
        lost = told.index("agent.lost")
        assert told[lost - 2 : lost] == ["dtmf.received", "dtmf.received"]


async def test_a_job_that_is_frozen(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, _):
        job = process_of(worker, call)
        os.kill(job, signal.SIGSTOP)
        lost = await worker.gateway.lost(call)
        assert (lost.data["why"], lost.data["detail"]) == ("hung", "no pulse")
        assert not psutil.pid_exists(job)


async def test_a_main_process_that_is_killed(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, phone):
        await phone.say("Please tell me a story!")
        began = await phone.hears()
        await phone.hears(after=began + 1.5)
        main = worker.stack.worker.process.pid
        assert main is not None
        os.kill(main, signal.SIGKILL)
        lost = await worker.gateway.lost(call)
        assert lost.data["why"] == "stopped"
        assert call.turns[-1].response, "what was heard is known to the next agent"
        await replaced(worker, call)
        await goes_on(call, phone)


async def test_a_worker_that_is_frozen_and_wakes(worker: WorkerStack) -> None:
    """Its timers are due at once when it wakes, and must not end the next agent's call."""
    impatient = QUIET.model_copy(update={"max_silence_ms": 10_000})
    async with worker.talk(impatient) as (call, phone):
        clock = asyncio.get_running_loop().time
        silent_until = clock() + 10.5
        job, main = process_of(worker, call), worker.stack.worker.process.pid
        assert main is not None
        for pid in (main, job):
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(4)
        await worker.gateway.lose(call)  # this gateway, without LiveKit, cannot notice it
        await replaced(worker, call)
        await asyncio.sleep(silent_until - clock())
        for pid in (main, job):
            os.kill(pid, signal.SIGCONT)
        await worker.until(lambda: not psutil.pid_exists(job), "end of the former agent")
        assert await worker.identities(call) == {call.identity, f"agent-{call.room}"}
        await goes_on(call, phone)
