"""One conversation, three lines, one record: every line has the same expectations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import pytest
import pytest_asyncio
from aiohttp import web

from core.models import AgentConfig, CustomTool, Turn
from dev.providers import Control, Deepgram, Fault, OpenAI, Rule, Script, ToolCall
from gateway.calls.views import CallDetail
from tests.support.stream_rig import StreamWorker, served
from tests.support.worker_gateway import KeptCall
from tests.support.worker_rig import WorkerStack
from tests.worker.lines.far_ends import Line, RoomLine, SocketLine, TwilioLine

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

GREETING = "Hello, this is the corner restaurant."
HOURS = "We are open from five in the afternoon to eleven at night, every day but Monday."
PROMPT = "Are you still there?"
WARNING = "We have to end soon."
NO_HUMAN = "I cannot put you through."
SORRY = "I am sorry, something went wrong on my side. Please call again later. Goodbye."
CUT = "the beginning of the hours"
CONTROL = Control(
    deepgram=Deepgram(
        phrases=[
            "what are your opening hours",
            "is there a table for tonight",
            "no wait I meant tomorrow",
            "please give me a human",
            "thank you and goodbye",
        ]
    ),
    openai=OpenAI(
        faults=[Fault(kind="status", times=None, model="broken")],
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
                    Rule(keywords=["human"], call=ToolCall(name="transfer_call")),
                    Rule(role="tool", tool_name="transfer_call", reply=NO_HUMAN),
                    Rule(keywords=["goodbye"], reply="Goodbye.", call=ToolCall(name="end_call")),
                ]
            )
        },
    ),
)
BEGIN: list[tuple[Any, ...]] = [
    ("agent.joined",),
    ("agent.ready",),
    ("call.answered",),
    ("greeting.started",),
    ("turn", "", GREETING),
]
# The data that counts, by event. No times, no ids, no texts of errors.
COUNTS = {
    "tool.called": ("name", "ok"),
    "dtmf.received": ("digit",),
    "silence.prompted": ("text",),
    "provider.error": ("stage", "recoverable"),
    "transfer.failed": ("reason",),
    "call.ended": ("status", "reason", "cause"),
    "agent.left": ("cause",),
}

Scenario: TypeAlias = Callable[[Line, str], Awaitable[KeptCall]]


def config(**changes: Any) -> AgentConfig:
    values: dict[str, Any] = {
        "name": "Test",
        "voice_mode": "hosted",
        "begin_message": GREETING,
    }
    return AgentConfig(**(values | changes))


async def answers(call: KeptCall, count: int) -> None:
    """Wait until so many turns have a response."""
    what = f"response {count}"
    await call.until(lambda told: [turn for turn in told.turns if turn.response][count - 1 :], what)


# --- the calls. Each returns its record when the worker has left it.


async def conversation(line: Line, tool_url: str) -> KeptCall:
    tool = CustomTool(
        name="find_table",
        description="Finds a free table.",
        url=tool_url,
        parameters={"type": "object", "properties": {"day": {"type": "string"}}},
    )
    async with line.talk(config(custom_tools=[tool])) as (call, far):
        await answers(call, 1)
        await far.say("is there a table for tonight")
        await call.until(lambda told: "eight" in told.turns[-1].response, "the tool's answer")
        await far.press("42")
        await answers(call, 3)
        await far.say("what are your opening hours")
        await far.hears()
        await asyncio.sleep(0.7)
        await far.say("no wait I meant tomorrow")
        await answers(call, 5)
        await far.say("thank you and goodbye")
        await call.event("agent.left")
    return call


async def hang_up_in_an_answer(line: Line, _: str) -> KeptCall:
    async with line.talk(config()) as (call, far):
        await answers(call, 1)
        await far.say("what are your opening hours")
        await far.hears()
        await asyncio.sleep(0.7)
        await far.hang_up()
        await call.event("agent.left")
    return call


async def silence(line: Line, _: str) -> KeptCall:
    quiet = config(silence_prompts=[PROMPT], silence_prompt_ms=3000, max_silence_ms=10_000)
    async with line.talk(quiet) as (call, _far):
        await call.event("agent.left", within_s=45)
    return call


async def time_limit(line: Line, _: str) -> KeptCall:
    short = config(max_duration_warning=WARNING)
    async with line.talk(short, max_duration_ms=9000) as (call, _far):
        await call.event("agent.left")
    return call


async def provider_failure(line: Line, _: str) -> KeptCall:
    async with line.talk(config(model="openai/broken")) as (call, far):
        await answers(call, 1)
        # Not words: livekit-agents begins to answer those before the turn has ended, so that the
        # failure may come first.
        await far.press("1")
        await call.event("agent.left", within_s=45)
    return call


async def transfer(line: Line, mode: str) -> KeptCall:
    human = config(transfer_number="+14155550199", transfer_mode=mode)
    async with line.talk(human) as (call, far):
        await answers(call, 1)
        await far.say("please give me a human")
        await answers(call, 2)
        await far.hang_up()
        await call.event("agent.left")
    return call


async def warm_transfer(line: Line, _: str) -> KeptCall:
    return await transfer(line, "warm")


async def cold_transfer(line: Line, _: str) -> KeptCall:
    return await transfer(line, "cold")


EVERY = ("room", "twilio", "socket")
TOGETHER: list[dict[Scenario, tuple[str, ...]]] = [
    {conversation: EVERY, silence: EVERY, time_limit: EVERY},
    {hang_up_in_an_answer: EVERY, provider_failure: EVERY},
    {warm_transfer: ("twilio", "socket"), cold_transfer: ("socket",)},
]
"""Calls that go on at once, because most of each is waiting; and their lines. Those in rooms go on
by themselves: with the others at the same time, a busy machine tears their audio."""


# --- the records


def told(call: KeptCall) -> list[tuple[Any, ...]]:
    """Return the call's events with the data that counts.

    A turn stands where it began, as it was in the end. The agent may be ready before or after the
    answer: nobody waits for it.
    """
    first = ["agent.joined", "agent.ready"]
    turns = {turn.id: turn for turn in call.turns}
    found: list[tuple[Any, ...]] = []
    # A room has LiveKit's events instead. A far end that says nothing here sends no sound at all.
    own = ("stream.", "audio.")
    events = [event for event in call.events if not event.type.startswith(own)]
    for event in sorted(events, key=lambda each: [each.type != name for name in first]):
        if event.type != "turn":
            found.append((event.type, *(event.data[name] for name in COUNTS.get(event.type, ()))))
        elif (turn := turns.pop(event.data["id"], None)) is not None:
            found.append(("turn", *words(turn)))
    return found


def words(turn: Turn) -> tuple[str, str]:
    """Return who said what; CUT for a part of HOURS."""
    said = "".join(c for c in turn.transcript.lower() if c.isalnum() or c in " []")
    if not turn.interrupted:
        return said, turn.response
    assert turn.response and turn.response != HOURS and HOURS.startswith(turn.response)
    return said, CUT


def cut_in(call: KeptCall) -> str:
    (cut,) = [turn.response for turn in call.turns if turn.interrupted]
    return cut


@dataclass
class Lines:
    """The lines under test, and their calls so far."""

    lines: dict[str, Line]
    workers: dict[str, WorkerStack | StreamWorker]
    tool_url: str
    _calls: dict[tuple[Scenario, str], asyncio.Task[KeptCall]] = field(default_factory=dict)

    async def call(self, scenario: Scenario, name: str) -> KeptCall:
        """Return the record of the scenario's call on the line ``name``."""
        if (scenario, name) not in self._calls:
            (group,) = [group for group in TOGETHER if scenario in group]
            beside = {name} if name == "room" else {"twilio", "socket"}
            for each, names in group.items():
                for line in self.lines.keys() & names & beside:
                    self._calls[each, line] = asyncio.create_task(self._call(each, line))
        return await self._calls[scenario, name]

    async def _call(self, scenario: Scenario, name: str) -> KeptCall:
        async with asyncio.timeout(80):
            return await scenario(self.lines[name], self.tool_url)

    async def shown(self, call: KeptCall, name: str) -> CallDetail:
        return await self.workers[name].gateway.shown(call)

    async def aclose(self) -> None:
        for task in self._calls.values():
            task.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)


async def find_table(_: web.Request) -> web.Response:
    return web.json_response({"time": "eight"})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def lines(request: pytest.FixtureRequest) -> AsyncIterator[Lines]:
    wanted = {getattr(getattr(item, "cls", None), "line", None) for item in request.session.items}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        tools = web.Application()
        tools.router.add_post("/tables", find_table)
        running = Lines({}, {}, f"{await enter(served(tools))}/tables")
        stack.push_async_callback(running.aclose)
        if "room" in wanted:
            control = CONTROL.model_copy(deep=True)
            rooms = await enter(WorkerStack.run(control, worker_max_calls=4))
            running.lines["room"], running.workers["room"] = RoomLine(rooms), rooms
        if wanted & {"twilio", "socket"}:
            worker = await enter(StreamWorker.run(CONTROL.model_copy(deep=True)))
            running.lines |= {"twilio": TwilioLine(worker), "socket": SocketLine(worker)}
            running.workers |= {"twilio": worker, "socket": worker}
        yield running


class Contract:
    line: ClassVar[str]
    kind: ClassVar[str] = "stream"

    async def test_a_conversation(self, lines: Lines) -> None:
        """Greeting, a tool's turn, keys, a barge-in, and the agent hangs up."""
        call = await lines.call(conversation, self.line)
        assert told(call) == [
            *BEGIN,
            ("turn", "is there a table for tonight", "Let me look. There is one at eight."),
            ("tool.called", "find_table", True),
            ("dtmf.received", "4"),
            ("dtmf.received", "2"),
            ("turn", "[the caller pressed 42]", "You pressed a key."),
            ("turn", "what are your opening hours", CUT),
            ("barge_in",),
            ("turn", "no wait i meant tomorrow", "Tomorrow is fine too."),
            ("turn", "thank you and goodbye", "Goodbye."),
            ("tool.called", "end_call", True),
            ("call.ended", "completed", "agent_hangup", "agent_hung_up"),
            ("agent.left", "agent_hung_up"),
        ]
        assert call.of("barge_in")[0].data["heard"] == cut_in(call)
        shown = await lines.shown(call, self.line)
        assert shown.type == self.kind
        assert (shown.status, shown.disconnection_reason) == ("completed", "agent_hangup")
        assert shown.answered_at is not None and shown.ended_at is not None
        assert shown.last_transcript_snippet == "Goodbye."
        assert [turn.response for turn in shown.transcripts] == [t.response for t in call.turns]
        parts = {"endpointing", "stt", "llm", "tts", "total"}
        assert parts <= shown.latency.keys() <= parts | {"tools", "transport"}

    async def test_the_caller_hangs_up(self, lines: Lines) -> None:
        call = await lines.call(hang_up_in_an_answer, self.line)
        assert told(call) == [
            *BEGIN,
            ("turn", "what are your opening hours", CUT),
            ("call.ended", "completed", "user_hangup", "caller_hung_up"),
            ("agent.left", "caller_hung_up"),
        ]

    async def test_silence(self, lines: Lines) -> None:
        call = await lines.call(silence, self.line)
        assert len(call.of("audio.missing")) == 1, "no sound came"
        assert told(call) == [
            *BEGIN,
            ("silence.prompted", PROMPT),
            ("turn", "", PROMPT),
            ("call.ended", "completed", "inactivity", "silence"),
            ("agent.left", "silence"),
        ]

    async def test_the_time_limit(self, lines: Lines) -> None:
        assert told(await lines.call(time_limit, self.line)) == [
            *BEGIN,
            ("turn", "", WARNING),
            ("call.ended", "completed", "max_duration_reached", "max_duration"),
            ("agent.left", "max_duration"),
        ]

    async def test_a_provider_fails(self, lines: Lines) -> None:
        assert told(await lines.call(provider_failure, self.line)) == [
            *BEGIN,
            ("dtmf.received", "1"),
            ("turn", "[the caller pressed 1]", ""),
            ("provider.error", "llm", True),
            ("provider.error", "llm", False),
            ("turn", "", SORRY),
            ("call.ended", "failed", "agent_error", "provider_failed"),
            ("agent.left", "provider_failed"),
        ]


NOT_TRANSFERRED: list[tuple[Any, ...]] = [
    *BEGIN,
    ("turn", "please give me a human", NO_HUMAN),
    ("transfer.failed", "not_supported"),
    ("tool.called", "transfer_call", False),
    ("call.ended", "completed", "user_hangup", "caller_hung_up"),
    ("agent.left", "caller_hung_up"),
]


class TestRoom(Contract):
    line = "room"
    kind = "pstn"


class TestTwilio(Contract):
    line = "twilio"

    async def test_a_warm_transfer(self, lines: Lines) -> None:
        call = await lines.call(warm_transfer, self.line)
        assert told(call) == NOT_TRANSFERRED


class TestSocket(Contract):
    line = "socket"

    async def test_a_warm_transfer(self, lines: Lines) -> None:
        assert told(await lines.call(warm_transfer, self.line)) == NOT_TRANSFERRED

    async def test_a_cold_transfer(self, lines: Lines) -> None:
        assert told(await lines.call(cold_transfer, self.line)) == NOT_TRANSFERRED
