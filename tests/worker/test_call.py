"""Whole calls: a real livekit-server, a real worker, real plugins, offline speech."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from livekit import api

from core.jobs import JobMetadata
from core.models import AgentConfig, CustomTool
from dev.providers import Control, Deepgram, Fault, OpenAI, Rule, Script, ToolCall
from tests.support.worker_rig import WorkerStack

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

GREETING = "Hello, this is the corner restaurant. How can I help you?"
HOURS = "We are open from five in the afternoon to eleven at night, every day but Monday."
PHRASES = [
    "what are your opening hours",
    "is there a table for tonight",
    "no wait I meant tomorrow",
    "thank you and goodbye",
]
CONTROL = Control(
    deepgram=Deepgram(phrases=PHRASES),
    openai=OpenAI(
        scripts={
            "default": Script(
                rules=[
                    Rule(keywords=["opening", "hours"], reply=HOURS),
                    Rule(
                        keywords=["table"],
                        reply="Let me look.",
                        call=ToolCall(name="find_table", arguments={"day": "tonight"}),
                    ),
                    Rule(role="tool", tool_name="find_table", reply="There is one at $time."),
                    Rule(keywords=["tomorrow"], reply="Tomorrow is fine too."),
                    Rule(keywords=["pressed"], reply="You pressed a key."),
                    Rule(keywords=["goodbye"], reply="Goodbye.", call=ToolCall(name="end_call")),
                ]
            ),
            "silent-goodbye": Script(
                rules=[
                    Rule(keywords=["goodbye"], call=ToolCall(name="end_call")),
                    Rule(role="tool", tool_name="end_call", reply="Have a nice day."),
                ]
            ),
        }
    ),
)


def config(**changes: Any) -> AgentConfig:
    values: dict[str, Any] = {
        "name": "Test",
        "voice_mode": "hosted",
        "begin_message": GREETING,
    }
    return AgentConfig(**(values | changes))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker() -> AsyncIterator[WorkerStack]:
    async with WorkerStack.run(CONTROL.model_copy(deep=True), worker_max_calls=4) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def no_faults_left(worker: WorkerStack) -> AsyncIterator[None]:
    yield
    await worker.providers.set_control(CONTROL.model_copy(deep=True))


def words(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum() or c == " ")


async def test_a_conversation(worker: WorkerStack) -> None:
    call = await worker.dispatch(config())
    await call.event("agent.joined")
    async with worker.phone(call) as phone:
        await call.event("agent.ready")
        await phone.status("ringing")
        await call.event("call.ringing")
        answered_at = await phone.answer()
        await phone.hears(after=answered_at)
        await call.until(lambda told: told.turns, "greeting")
        await phone.say("What are your opening hours?")
        await call.until(lambda told: told.turns[1:] and told.turns[1].response, "answer")
        await phone.say("Thank you, and goodbye!")
        left = await call.event("agent.left")
    assert left.data == {"cause": "agent_hung_up"}
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("completed", "agent_hangup")

    greeting, hours, goodbye = call.turns
    assert (greeting.transcript, greeting.response) == ("", GREETING)
    assert (words(hours.transcript), hours.response) == (PHRASES[0], HOURS)
    assert (words(goodbye.transcript), goodbye.response) == (PHRASES[3], "Goodbye.")
    assert not any(turn.interrupted for turn in call.turns)
    for turn in (hours, goodbye):
        assert turn.start_ms is not None and turn.end_ms is not None
        assert turn.response_start_ms is not None and turn.response_end_ms is not None
        assert turn.start_ms < turn.end_ms < turn.response_start_ms < turn.response_end_ms
        parts = {**turn.latency}
        total = parts.pop("total")
        assert set(parts) - {"transport"} == {"endpointing", "stt", "llm", "tts"}
        assert min(parts.values()) >= 0
        assert sum(parts.values()) == pytest.approx(total, abs=0.05)
        # Both ends are the caller's, so the way there and back is part of it.
        assert turn.response_start_ms - turn.end_ms == pytest.approx(total, abs=20)
        for said, spelt in (
            (turn.transcript, turn.words),
            (turn.response, turn.response_words),
        ):
            assert [word.text for word in spelt] == said.split()
        assert abs(turn.words[0].start_ms - turn.start_ms) < 80
        assert abs(turn.words[-1].end_ms - turn.end_ms) < 120
        assert abs(turn.response_words[0].start_ms - turn.response_start_ms) < 80
        assert abs(turn.response_words[-1].end_ms - turn.response_end_ms) < 120

    # The phone sends nothing until it speaks.
    apart = ("turn", "audio.missing", "audio.received")
    told = [event.type for event in call.events if event.type not in apart]
    assert told == [
        "agent.joined",
        "agent.ready",
        "call.ringing",
        "call.answered",
        "greeting.started",
        "tool.called",
        "call.ended",
        "agent.left",
    ]


async def test_without_a_goodbye_in_the_same_reply_one_is_said(worker: WorkerStack) -> None:
    silent = config(model="openai/silent-goodbye", begin_message=None)
    async with worker.talk(silent) as (call, phone):
        await phone.say("Thank you, and goodbye!")
        await call.event("agent.left")
    (turn,) = call.turns
    assert turn.response == "Have a nice day."
    assert call.of("call.ended")[0].data["reason"] == "agent_hangup"


async def test_barge_in_keeps_what_was_heard(worker: WorkerStack) -> None:
    async with worker.talk(config()) as (call, phone):
        await phone.say("What are your opening hours?")
        asked_at = asyncio.get_running_loop().time()
        await phone.hears(after=asked_at - 0.5)
        await phone.say("No, wait, I meant tomorrow.")
        await call.until(lambda told: told.turns[2:] and told.turns[2].response, "second answer")
    _, cut, second = call.turns
    (barge_in,) = call.of("barge_in")
    assert cut.interrupted
    assert 0 < len(cut.response) < len(HOURS)
    assert HOURS.startswith(cut.response)
    assert barge_in.data["heard"] == cut.response
    assert barge_in.data["atMs"] == cut.response_end_ms
    assert second.response == "Tomorrow is fine too."


async def test_a_tool_of_the_agents_owner(worker: WorkerStack) -> None:
    asked: list[tuple[str | None, Any]] = []

    async def find_table(request: web.Request) -> web.Response:
        asked.append((request.headers.get("X-Call-Id"), await request.json()))
        return web.json_response({"time": "eight"})

    app = web.Application()
    app.router.add_post("/tables", find_table)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    tool = CustomTool(
        name="find_table",
        description="Finds a free table.",
        url=f"http://127.0.0.1:{runner.addresses[0][1]}/tables",
        parameters={"type": "object", "properties": {"day": {"type": "string"}}},
    )
    try:
        async with worker.talk(config(begin_message=None, custom_tools=[tool])) as (call, phone):
            await phone.say("Is there a table for tonight?")
            await call.until(
                lambda told: told.turns and "eight" in told.turns[0].response, "the tool's answer"
            )
    finally:
        await runner.cleanup()
    assert asked == [(call.id, {"day": "tonight"})]
    (called,) = call.of("tool.called")
    assert (called.data["name"], called.data["ok"]) == ("find_table", True)
    (turn,) = call.turns
    assert turn.response == "Let me look. There is one at eight."


async def test_keys_are_a_turn(worker: WorkerStack) -> None:
    async with worker.talk(config(begin_message=None)) as (call, phone):
        for digit in "42":
            await phone.room.local_participant.publish_dtmf(code=int(digit), digit=digit)
        await call.until(lambda told: told.turns and told.turns[0].response, "an answer")
    assert [event.data["digit"] for event in call.of("dtmf.received")] == ["4", "2"]
    assert call.turns[0].transcript == "[The caller pressed 42]"
    assert call.turns[0].response == "You pressed a key."


async def test_the_caller_hangs_up(worker: WorkerStack) -> None:
    async with worker.talk(config(begin_message=None)) as (call, phone):
        await phone.say("What are your opening hours?")
        await phone.hears(after=0)
        await phone.hang_up()
        await call.event("agent.left")
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("completed", "user_hangup")
    (turn,) = call.turns
    assert HOURS.startswith(turn.response)
    assert len(turn.response) < len(HOURS)
    assert call.of("barge_in") == []


async def test_a_call_that_was_never_answered_is_the_dials_to_judge(worker: WorkerStack) -> None:
    call = await worker.dispatch(config())
    async with worker.phone(call) as phone:
        await phone.status("ringing")
        await call.event("call.ringing")
    left = await call.event("agent.left")
    assert left.data == {"cause": "not_answered"}
    assert call.of("call.ended") == call.of("call.answered") == call.of("turn") == []


async def test_what_is_heard_before_the_answer_is_no_turn(worker: WorkerStack) -> None:
    call = await worker.dispatch(config(begin_message=None))
    async with worker.phone(call) as phone:
        await call.event("agent.ready")
        await phone.say("What are your opening hours?")
        await phone.answer()
        await call.event("call.answered")
        await phone.say("Thank you, and goodbye!")
        await call.event("agent.left")
    (turn,) = call.turns
    assert words(turn.transcript) == PHRASES[3]


async def test_max_duration(worker: WorkerStack) -> None:
    async with worker.talk(config(begin_message=None), max_duration_ms=1_000) as (call, _):
        await call.event("agent.left")
        assert await worker.identities(call) <= {f"agent-{call.room}"}
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("completed", "max_duration_reached")


async def test_silence(worker: WorkerStack) -> None:
    async with worker.talk(config(begin_message=None, max_silence_ms=10_000)) as (call, _):
        await call.event("agent.left", within_s=30)
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("completed", "inactivity")


async def test_hung_up_through_the_api(worker: WorkerStack) -> None:
    async with worker.talk(config(begin_message=None)) as (call, _):
        await worker.livekit.room.remove_participant(
            api.RoomParticipantIdentity(room=call.room, identity=call.identity)
        )
        await call.event("agent.left")
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("completed", "agent_hangup")
    assert end.data["cause"] == "removed"


async def test_the_room_is_deleted(worker: WorkerStack) -> None:
    async with worker.talk(config(begin_message=None)) as (call, _):
        await worker.livekit.room.delete_room(api.DeleteRoomRequest(room=call.room))
        await call.event("agent.left")
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["cause"]) == ("completed", "removed")


async def test_an_agent_that_is_taken_out_leaves_the_call_alone(worker: WorkerStack) -> None:
    async with worker.talk(config(begin_message=None)) as (call, phone):
        await worker.livekit.room.remove_participant(
            api.RoomParticipantIdentity(room=call.room, identity=f"agent-{call.room}")
        )
        left = await call.event("agent.left")
        assert left.data == {"cause": "agent_removed"}
        assert await worker.identities(call) == {call.identity}
        assert phone.room.isconnected()
    assert call.of("call.ended") == []


async def test_others_in_the_room_stay_when_the_agent_hangs_up(worker: WorkerStack) -> None:
    async with (
        worker.talk(config(begin_message=None)) as (call, phone),
        worker.phone(call, identity="listener", kind="standard") as listener,
    ):
        gone = asyncio.Event()
        listener.room.on("participant_disconnected", lambda _: gone.set())
        await phone.say("Thank you, and goodbye!")
        await call.event("agent.left")
        async with asyncio.timeout(10):
            await gone.wait()
        assert listener.room.isconnected()


async def test_a_browser_is_greeted_when_it_joins(worker: WorkerStack) -> None:
    call = await worker.dispatch(config(), direction="web", participant_identity="visitor")
    async with worker.phone(call, kind="standard") as browser:
        await call.event("call.answered")
        await browser.hears()
        await call.until(lambda told: told.turns, "greeting")
    await call.event("agent.left")
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("completed", "user_hangup")


async def test_inbound_rings_until_the_agent_can_speak(worker: WorkerStack) -> None:
    call = await worker.dispatch(config(), direction="inbound")
    async with worker.phone(call, status="ringing") as phone:
        async with asyncio.timeout(15):
            await phone.agent_published.wait()
        assert call.of("call.answered") == []
        answered_at = await phone.answer()
        await phone.hears(after=answered_at)
        assert f"agent-{call.room}" in await worker.identities(call)
        await phone.hang_up()
        await call.event("agent.left")
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("completed", "user_hangup")
    # The gateway reports the ringing, with which the record begins.
    assert call.of("call.ringing") == []


async def test_a_caller_is_heard_from_the_first_word(worker: WorkerStack) -> None:
    call = await worker.dispatch(config(begin_message=None), direction="inbound")
    async with worker.phone(call, status="ringing") as phone:
        async with asyncio.timeout(15):
            await phone.agent_published.wait()
        await phone.answer()
        await phone.say("What are your opening hours?")
        await call.until(lambda told: told.turns and told.turns[0].response, "an answer")
        await phone.hang_up()
    (turn,) = call.turns
    assert words(turn.transcript) == PHRASES[0]


async def test_a_caller_who_gives_up(worker: WorkerStack) -> None:
    call = await worker.dispatch(config(), direction="inbound")
    async with worker.phone(call, status="ringing", subscribe=False) as phone:
        await call.event("agent.ready")
        await phone.hang_up()
        left = await call.event("agent.left")
    assert left.data == {"cause": "caller_gave_up"}
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("canceled", "user_hangup")


async def test_a_call_that_is_refused_is_never_answered(worker: WorkerStack) -> None:
    call = worker.gateway.new_call(config(), direction="inbound")
    await worker.gateway.record(call)
    await worker.gateway.end(call)
    async with worker.phone(call, status="ringing") as phone:
        await worker.dispatch_again(call)
        await worker.gateway.answered("POST", "/internal/calls/inbound", 410)
        await worker.gateway.heartbeat(lambda beat: beat.active == 0)
        assert not phone.agent_published.is_set()
        assert phone.room.isconnected(), "the gateway sends the caller away"
    assert call.events == []


@pytest.mark.parametrize("kind", ["status", "hang", "drop"])
async def test_an_llm_that_fails_is_apologised_for(worker: WorkerStack, kind: Any) -> None:
    worker.providers.control.openai.faults = [Fault(kind=kind, times=None)]
    async with worker.talk(config(begin_message=None)) as (call, phone):
        await phone.say("What are your opening hours?")
        await call.event("agent.left", within_s=45)
        heard = len(phone.heard_at)
    errors = call.of("provider.error")
    assert {error.data["stage"] for error in errors} == {"llm"}
    assert errors[-1].data["recoverable"] is False
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("failed", "agent_error")
    assert call.turns[-1].response.startswith("I am sorry")
    assert heard > 50, "a second of apology, in frames of 20 ms"


async def test_a_short_failure_is_not_noticed(worker: WorkerStack) -> None:
    worker.providers.control.openai.faults = [Fault(kind="status", times=1)]
    async with worker.talk(config(begin_message=None)) as (call, phone):
        await phone.say("What are your opening hours?")
        await call.until(lambda told: told.turns and told.turns[0].response, "an answer")
    assert [error.data["recoverable"] for error in call.of("provider.error")] == [True]
    assert call.turns[0].response == HOURS


async def test_a_voice_that_fails_ends_the_call(worker: WorkerStack) -> None:
    worker.providers.control.cartesia.faults = [Fault(kind="status", status=500, times=None)]
    call = await worker.dispatch(config())
    async with worker.phone(call):
        await call.event("agent.left", within_s=30)
    assert call.of("agent.ready") == []
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("failed", "agent_error")
    assert end.data["detail"].startswith("tts:")


async def test_an_ear_that_fails_ends_the_call(worker: WorkerStack) -> None:
    worker.providers.control.deepgram.faults = [Fault(kind="status", status=401, times=None)]
    call = await worker.dispatch(config())
    async with worker.phone(call):
        await call.event("agent.left", within_s=30)
    (end,) = call.of("call.ended")
    assert end.data["detail"].startswith("stt:")


async def test_without_a_brief_the_phone_is_not_left_alone(worker: WorkerStack) -> None:
    """The gateway refuses the worker's token; it does not say that there is no such call."""
    call, other = (worker.gateway.new_call(config()) for _ in range(2))
    token = worker.gateway.tokens.for_call(other.id)
    job = JobMetadata(call_id=call.id, token=token).model_dump_json(by_alias=True)
    async with worker.phone(call) as phone:
        gone = asyncio.Event()
        phone.room.on("disconnected", lambda _: gone.set())
        await worker.dispatch_again(call, job)
        async with asyncio.timeout(15):
            await gone.wait()


async def test_an_agent_that_is_there_before_its_calls_record(worker: WorkerStack) -> None:
    call = worker.gateway.new_call(config())
    await worker.dispatch_again(call)
    await worker.gateway.answered("GET", f"/internal/calls/{call.id}", 425)
    await worker.gateway.record(call)
    async with worker.phone(call) as phone:
        await call.event("agent.ready")
        await phone.answer()
        await call.until(lambda told: told.turns, "greeting")
    assert call.of("agent.joined"), "told too early, and once more"


async def test_the_agent_of_no_call_leaves_the_phone_of_another_alone(worker: WorkerStack) -> None:
    """Of two requests for one room, one is refused; its agent finds the other's phone."""
    call = worker.gateway.new_call(config())
    job = worker.gateway.job(call, made_earlier=True)

    def said() -> str:
        return "\n".join(line for line in worker.log.splitlines() if call.room in line)

    async with worker.phone(call) as phone:
        await worker.dispatch_again(call, job)
        await worker.until(lambda: "process exiting" in said(), "end of the job")
        assert '"cause": "no_call"' in said()
        assert phone.room.isconnected()
        assert await worker.identities(call) == {call.identity}


async def test_nothing_of_a_call_is_left(worker: WorkerStack) -> None:
    """This test is the last: all calls above leave no job, spool file or logged secret."""
    await worker.gateway.heartbeat(lambda beat: beat.active == 0, within_s=30)
    spool = worker.stack.settings.data_dir / "spool" / "worker"
    assert [path.name for path in spool.glob("*.jsonl")] == []
    secret = worker.stack.settings.livekit_api_secret
    assert secret is not None
    log = worker.log
    for hidden in (secret.get_secret_value(), "deepgram-key", "openai-key", "cartesia-key"):
        assert hidden not in log
    for call in worker.gateway.calls.values():
        token = worker.gateway.tokens.for_call(call.id)
        assert token.rpartition(".")[0] not in log
    assert "livekit.cloud" not in log
    assert PHRASES[0] not in log, "speech is redacted"
