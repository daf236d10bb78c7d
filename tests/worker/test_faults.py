"""Faults of a worker: gateway unreachable, full, stopped, killed, cut off from LiveKit."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from core.models import AgentConfig
from dev.process import inherited_environment
from dev.providers import Control, Deepgram, OpenAI, Rule, Script, ToolCall
from tests.support.reported_call import ReportedCall
from tests.support.worker_gateway import KeptCall
from tests.support.worker_rig import WorkerStack

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

CONTROL = Control(
    deepgram=Deepgram(
        phrases=[
            "thank you and goodbye",
            "my name is ann",
            "i would like a table",
            "do you remember my name",
        ]
    ),
    openai=OpenAI(
        scripts={
            "default": Script(
                rules=[
                    Rule(keywords=["goodbye"], reply="Goodbye.", call=ToolCall(name="end_call")),
                    # The third message of the caller, of which another agent has had the first.
                    Rule(keywords=["remember"], turn=3, reply="You are Ann."),
                ],
                default="Nice to meet you.",
            )
        }
    ),
)
GREETING = "Hello, this is the corner restaurant."
QUIET = AgentConfig(name="Quiet", voice_mode="hosted")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running() -> AsyncIterator[WorkerStack]:
    async with WorkerStack.run(CONTROL.model_copy(deep=True), worker_max_calls=2) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def worker(running: WorkerStack) -> AsyncIterator[WorkerStack]:
    """A stack that runs with no call; what the previous test stopped is started again."""
    stack = running.stack
    running.gateway.failing_with = None
    if not stack.livekit.running:
        await stack.worker.kill()  # only a worker that starts says when LiveKit gives it calls
        await stack.livekit.start()
    if not stack.worker.running:
        await stack.worker.start()
    await running.gateway.heartbeat(lambda beat: beat.active == 0, within_s=40)
    yield running
    await running.end_calls()


@contextlib.asynccontextmanager
async def changed(worker: WorkerStack, **variables: str) -> AsyncIterator[None]:
    """Run the worker with other settings."""
    process = worker.stack.worker.process
    before = dict(process.env or {})
    await worker.stack.worker.kill()
    process.env = before | variables
    try:
        await worker.stack.worker.start()
        yield
    finally:
        await worker.stack.worker.kill()
        process.env = before


def answers(call: ReportedCall) -> list[str]:
    return [turn.response for turn in call.turns if turn.response]


def spooled(worker: WorkerStack) -> list[Path]:
    return list((worker.stack.settings.data_dir / "spool" / "worker").glob("*.jsonl"))


async def test_events_outlive_a_gateway_that_is_away(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, phone):
        gone = asyncio.Event()
        phone.room.on("disconnected", lambda _: gone.set())
        worker.gateway.failing_with = 503
        await phone.say("Thank you, and goodbye!")
        async with asyncio.timeout(20):
            await gone.wait()
    assert call.of("call.ended") == []
    worker.gateway.failing_with = None
    await call.event("agent.left", within_s=40)
    assert call.turns[0].response == "Goodbye."
    assert [event.type for event in call.events][-2:] == ["call.ended", "agent.left"]
    assert [event.at for event in call.events] == sorted(event.at for event in call.events)
    await worker.until(lambda: not spooled(worker), "empty spool")


async def test_events_outlive_the_worker(worker: WorkerStack) -> None:
    worker.gateway.failing_with = 503
    call = await worker.dispatch(QUIET)
    await worker.until(lambda: spooled(worker), "spool file")
    await worker.until(lambda: "agent.joined" in spooled(worker)[0].read_text(), "spooled event")
    await worker.stack.worker.kill()
    worker.gateway.failing_with = None
    await worker.stack.worker.start()
    await call.event("agent.joined")
    await worker.until(lambda: not spooled(worker), "empty spool")


async def test_takes_as_many_calls_as_it_may_all_at_once(worker: WorkerStack) -> None:
    calls = await asyncio.gather(*(worker.dispatch(QUIET) for _ in range(3)))
    await worker.until(
        lambda: "full, call left to another worker" in worker.log, "refusal of the third"
    )
    await worker.gateway.heartbeat(lambda beat: beat.active == beat.capacity == 2)

    def joined() -> list[KeptCall]:
        return [call for call in calls if call.of("agent.joined")]

    await worker.until(lambda: len(joined()) == 2, "second call")
    (refused,) = [call for call in calls if call not in joined()]
    assert await worker.identities(refused) == set()


async def test_the_last_free_place_is_offered(worker: WorkerStack) -> None:
    """LiveKit drops a dispatch when no worker that it knows reports a load below 70 %."""
    async with changed(worker, WORKER_MAX_CALLS="4"):
        for _ in range(3):
            await (await worker.dispatch(QUIET)).event("agent.joined")
        # After three heartbeats, two seconds apart, LiveKit knows too: it is told every 2.5 s.
        for _ in range(3):
            await worker.gateway.heartbeat(lambda beat: beat.active == 3)
        await (await worker.dispatch(QUIET)).event("agent.joined")


async def test_drains(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, phone):
        worker.stack.worker.process.signal(signal.SIGTERM)
        beat = await worker.gateway.heartbeat(lambda beat: beat.draining)
        assert beat.active == 1
        late = await worker.dispatch(QUIET)
        await phone.say("Thank you, and goodbye!")
        await call.event("agent.left")
        assert call.of("call.ended")[0].data["reason"] == "agent_hangup"
        async with asyncio.timeout(30):
            assert await worker.stack.worker.process.wait() == 0
    assert late.of("agent.joined") == []


async def test_a_call_that_outlasts_the_drain_is_left_to_another_agent(
    worker: WorkerStack,
) -> None:
    async with changed(worker, WORKER_DRAIN_TIMEOUT_S="1"), worker.talk(QUIET) as (call, _):
        worker.stack.worker.process.signal(signal.SIGTERM)
        # livekit-agents gives a call another 15 s to end by itself.
        lost = await worker.gateway.lost(call, within_s=40)
        assert lost.data["why"] == "stopped"
        async with asyncio.timeout(30):
            assert await worker.stack.worker.process.wait() == 0
        assert await worker.identities(call) == {call.identity}
    assert call.of("call.ended") == []


async def test_a_second_signal_ends_it_and_its_processes(worker: WorkerStack) -> None:
    async with worker.talk(QUIET):
        process = worker.stack.worker.process
        process.signal(signal.SIGTERM)
        await worker.gateway.heartbeat(lambda beat: beat.draining)
        process.signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 1


async def test_a_media_server_that_dies(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, _):
        await worker.stack.livekit.kill()
        await call.event("agent.left", within_s=60)
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["cause"]) == ("failed", "media_lost")


# The SDK of the test's phone drops a handle twice when its room is rebuilt.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_media_server_that_comes_back(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, phone):
        back = asyncio.Event()
        phone.room.on("reconnected", back.set)
        await worker.stack.livekit.kill()
        await worker.stack.livekit.start()
        async with asyncio.timeout(20):
            await back.wait()
        await worker.until(lambda: "connection to LiveKit restored" in worker.log, "reconnect")
        await worker.until_both_are_back(call)
        await phone.say("Thank you, and goodbye!")
        end = await call.event("call.ended")
    assert end.data["reason"] == "agent_hangup"
    await worker.stack.livekit.kill()  # the next test starts a new one


async def test_a_second_agent_takes_over(worker: WorkerStack) -> None:
    async with worker.talk(QUIET) as (call, phone):
        await worker.dispatch_again(call)
        left = await call.event("agent.left")
        assert left.data == {"cause": "agent_replaced"}
        assert call.of("call.ended") == []
        await call.until(lambda told: len(told.of("agent.ready")) == 2, "second agent")
        await phone.say("Thank you, and goodbye!")
        end = await call.event("call.ended")
        assert end.data["reason"] == "agent_hangup"


def with_media(worker: WorkerStack) -> list[psutil.Process]:
    """Return the worker's processes that have a call: only those send media."""
    main = psutil.Process(worker.stack.worker.process.pid)
    return [each for each in main.children(recursive=True) if each.net_connections("udp")]


async def test_a_killed_agents_call_goes_on_with_another(worker: WorkerStack) -> None:
    greeter = QUIET.model_copy(update={"begin_message": GREETING})
    async with worker.talk(greeter) as (call, phone):
        await phone.say("My name is Ann.")
        await call.until(lambda told: len(answers(told)) == 2, "answer")
        await phone.say("I would like a table.")
        await call.until(lambda told: len(answers(told)) == 3, "second answer")
        (job,) = with_media(worker)
        job.kill()
        await worker.dispatch_again(call, await worker.gateway.lose(call))
        resumption = await call.event("agent.resumed")
        await call.until(lambda told: len(answers(told)) == 4, "re-entry line")
        await phone.say("Do you remember my name?")
        await call.until(lambda told: len(answers(told)) == 5, "answer")
        await phone.say("Thank you, and goodbye!")
        end = await call.event("call.ended")
        await call.event("agent.left")
    assert end.data["reason"] == "agent_hangup"
    assert answers(call) == [
        GREETING,
        "Nice to meet you.",
        "Nice to meet you.",
        "Sorry, I lost you for a moment.",
        "You are Ann.",
        "Goodbye.",
    ]
    assert resumption.id == f"{call.id}_resumed_1"
    assert (resumption.data["epoch"], resumption.data["unanswered"]) == (1, False)
    # The worker's clock of the call has gone on, and so has the gateway's record.
    starts = [turn.response_start_ms for turn in call.turns]
    assert None not in starts and starts == sorted(starts, key=lambda ms: ms or 0)
    for once in ("call.answered", "greeting.started", "agent.resumed"):
        assert len(call.of(once)) == 1
    shown = await worker.gateway.shown(call)
    assert (shown.status, [turn.response for turn in shown.transcripts]) == (
        "completed",
        answers(call),
    )


async def test_a_call_that_is_over_is_left_in_peace(worker: WorkerStack) -> None:
    call = worker.gateway.new_call(QUIET)
    await worker.gateway.record(call)
    await worker.gateway.end(call)
    await worker.dispatch_again(call)
    left = await call.event("agent.left")
    assert left.data == {"cause": "over_already"}
    assert call.of("call.ended") == []


async def test_missing_settings_are_named(tmp_path: Path) -> None:
    environment = inherited_environment() | {"ENV_FILE": "", "OPENAI_API_KEY": "given"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "start"),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        _, errors = await process.communicate()
    assert process.returncode == 2
    text = errors.decode()
    for name in ("LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", "DEEPGRAM_API_KEY", "CARTESIA_API_KEY"):
        assert f"{name}: is required" in text
    assert "OPENAI_API_KEY" not in text
