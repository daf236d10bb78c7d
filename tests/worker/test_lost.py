"""An agent that is lost is reported by its worker, and another one takes over: real processes."""

from __future__ import annotations

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
from tests.support.worker_rig import WorkerStack

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
async def worker() -> AsyncIterator[WorkerStack]:
    async with WorkerStack.run(
        CONTROL.model_copy(deep=True), replaces=True, worker_max_calls=3
    ) as running:
        yield running


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


async def test_a_job_that_is_killed(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, phone):
        pid = process_of(worker, call)
        os.kill(pid, signal.SIGKILL)
        lost = await worker.gateway.lost(call, within_s=3)
        assert lost.data["why"] == "killed"
        await call.until(lambda told: len(told.of("agent.ready")) == 2, "the next agent")
        await phone.say("Thank you, and goodbye!")
        end = await call.event("call.ended")
        assert end.data["reason"] == "agent_hangup"


async def test_a_job_that_is_frozen(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, phone):
        pid = process_of(worker, call)
        os.kill(pid, signal.SIGSTOP)
        lost = await worker.gateway.lost(call, within_s=6)
        assert (lost.data["why"], lost.data["detail"]) == ("hung", "no pulse")
        assert not psutil.pid_exists(pid)
        await call.until(lambda told: len(told.of("agent.ready")) == 2, "the next agent")
        await phone.say("Thank you, and goodbye!")
        await call.event("call.ended")
