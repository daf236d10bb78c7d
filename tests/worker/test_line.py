"""Tests of worker.call on a scripted line: a call needs no room and no LiveKit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from livekit.agents.utils import http_context

from core.jobs import Assignment, CallBrief
from core.models import Agent, AgentConfig, CallEvent
from core.transfers import TransferOrder, TransferResult
from dev.providers import Control, Deepgram, OpenAI, Providers, Rule, Script, ToolCall
from dev.stack.environment import GivenSettings
from tests.support.reported_call import ReportedCall
from tests.support.scripted_line import ScriptedLine
from worker.call import Call
from worker.job import Seat
from worker.line import Line
from worker.link.client import Gateway, Refused
from worker.link.reporter import Reporter
from worker.link.spool import Owner
from worker.pulse.standstill import Standstill
from worker.voice.providers import build_llm_client

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

GREETING = "Hello, this is the corner restaurant."
HOURS = "We are open from five in the afternoon."
SORRY = "I cannot put you through."
CONTROL = Control(
    deepgram=Deepgram(
        phrases=[
            "what are your opening hours",
            "is there a table for tonight",
            "please give me a human",
            "thank you and goodbye",
        ]
    ),
    openai=OpenAI(
        scripts={
            "default": Script(
                rules=[
                    Rule(keywords=["opening", "hours"], reply=HOURS),
                    Rule(
                        keywords=["pressed"],
                        call=ToolCall(name="send_dtmf", arguments={"digits": "1#"}),
                    ),
                    Rule(role="tool", tool_name="send_dtmf", reply="I pressed two keys."),
                    Rule(keywords=["table"], call=ToolCall(name="find_table")),
                    Rule(role="tool", tool_name="find_table", reply="There is one."),
                    Rule(keywords=["human"], call=ToolCall(name="transfer_call")),
                    Rule(role="tool", tool_name="transfer_call", reply=SORRY),
                    Rule(keywords=["goodbye"], reply="Goodbye.", call=ToolCall(name="end_call")),
                ]
            )
        }
    ),
)


class Keeping(Gateway):
    """A gateway that keeps the reported events. Every human whom it dials answers."""

    def __init__(self, http: aiohttp.ClientSession, call: ReportedCall) -> None:
        super().__init__(http, "http://127.0.0.1:9")
        self._call = call

    async def post_events(self, call_id: str, token: str, events: list[CallEvent]) -> bool:
        async with self._call.changed:
            self._call.events += events
            self._call.changed.notify_all()
        return False

    async def transfer(self, call_id: str, token: str, order: TransferOrder) -> TransferResult:
        return TransferResult(outcome="answered", identity="human")


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def providers() -> AsyncIterator[Providers]:
    async with Providers(CONTROL) as running:
        yield running


def brief(**changes: Any) -> CallBrief:
    values = {"voice_mode": "hosted", "begin_message": GREETING, "ambient_sound": "office"}
    config = AgentConfig(name="Test", **(values | changes))
    return CallBrief(
        call_id="call_1",
        direction="outbound",
        participant_identity="somebody",
        from_number=None,
        to_number="+15550100",
        metadata={},
        max_duration_ms=60_000,
        agent=Agent(id="test", version=1, config=config),
    )


class Served:
    """A call that a worker serves."""

    def __init__(
        self,
        line: ScriptedLine,
        call: ReportedCall,
        running: asyncio.Task[None],
        standstill: Standstill,
    ) -> None:
        self.line = line
        self.call = call
        self.running = running
        self.standstill = standstill

    async def greeted(self) -> None:
        """Answer as the far end, and wait for the greeting."""
        await self.call.event("agent.ready")
        await self.line.answers()
        assert await self.turn(0) == ("", GREETING)

    async def turn(self, number: int) -> tuple[str, str]:
        """Return what caller and agent said in a turn, once it is over. Turn 0 is the greeting."""
        await self.call.until(
            lambda told: told.turns[number:] and told.turns[number].response, "answer"
        )
        turn = self.call.turns[number]
        return turn.transcript.lower().rstrip("?.!"), turn.response

    async def over(self) -> dict[str, Any]:
        """Return the data of ``call.ended``, once the worker has left."""
        async with asyncio.timeout(20):
            await self.running
        await self.call.event("agent.left")
        (end,) = self.call.of("call.ended")
        return end.data


@asynccontextmanager
async def serving(
    providers: Providers,
    folder: Path,
    *,
    line: ScriptedLine | None = None,
    draining: asyncio.Event | None = None,
    told_of: dict[str, Any] | None = None,
    **changes: Any,
) -> AsyncIterator[Served]:
    """``told_of``: fields of the brief. ``changes``: fields of the agent."""
    settings = GivenSettings(
        data_dir=folder,
        deepgram_base_url=providers.deepgram_base_url,
        openai_base_url=providers.openai_base_url,
        cartesia_base_url=providers.cartesia_base_url,
        deepgram_api_key="deepgram-key",
        openai_api_key="openai-key",
        cartesia_api_key="cartesia-key",
        endpointing_ms=300,
        webhook_allow_private=True,
    )
    known, told = brief(**changes).model_copy(update=told_of or {}), ReportedCall()
    scripted = line or ScriptedLine()
    of_the_call: Line = scripted
    model = build_llm_client(settings)
    async with (
        http_context.open(),
        aiohttp.ClientSession() as http,
        model,
    ):
        gateway = Keeping(http, told)
        reporter = Reporter(gateway, folder)
        reporter.own(Owner(known.call_id, "token"))

        async def ask() -> Assignment:
            return Assignment(brief=known, token="token")

        standstill = Standstill()
        call = Call(
            of_the_call,
            ask,
            settings,
            seat=Seat("wrk_1"),
            llm_client=model,
            gateway=gateway,
            reporter=reporter,
            standstill=standstill,
            draining=draining,
        )
        running = asyncio.create_task(call.run())
        try:
            yield Served(scripted, told, running, standstill)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await reporter.aclose(5.0)


async def test_a_conversation(providers: Providers, tmp_path: Path) -> None:
    async with serving(providers, tmp_path) as served:
        line = served.line
        await served.greeted()
        assert line.heard_s > 1
        line.says("What are your opening hours?")
        assert await served.turn(1) == ("what are your opening hours", HOURS)
        line.types("42")
        assert await served.turn(2) == (
            "[the caller pressed 42]",
            "I pressed two keys.",
        )
        assert line.pressed == "1#"
        line.says("Thank you, and goodbye!")
        end = await served.over()
    assert (end["status"], end["reason"]) == ("completed", "agent_hangup")
    assert set(line.did[:2]) == {"connect", "meet somebody"}
    assert line.did[2:] == [
        "start",
        "drain",
        "hang up, told: True",
        "fall silent",
        "leave",
    ]
    told = [event.type for event in served.call.events if event.type != "turn"]
    assert told == [
        "agent.joined",
        "agent.ready",
        "call.ringing",
        "call.answered",
        "greeting.started",
        "dtmf.received",
        "dtmf.received",
        "dtmf.sent",
        "tool.called",
        "tool.called",
        "call.ended",
        "agent.left",
    ]
    hours = served.call.turns[1]
    assert hours.latency["transport"] == line.delay_ms


@pytest.mark.parametrize("mode", ["cold", "warm"])
async def test_a_transfer_that_the_line_cannot_do(
    providers: Providers, tmp_path: Path, mode: str
) -> None:
    numbers: dict[str, Any] = {"transfer_number": "+15551230077", "transfer_mode": mode}
    async with serving(providers, tmp_path, **numbers) as served:
        await served.greeted()
        served.line.says("Please give me a human!")
        assert await served.turn(1) == ("please give me a human", SORRY)
        (failed,) = served.call.of("transfer.failed")
        assert failed.data == {"reason": "not_supported"}
        served.line.says("What are your opening hours?")
        assert (await served.turn(2))[1] == HOURS, "the caller is heard again"


async def test_the_far_end_hangs_up(providers: Providers, tmp_path: Path) -> None:
    async with serving(providers, tmp_path) as served:
        await served.greeted()
        served.line.hangs_up()
        end = await served.over()
    assert (end["reason"], end["cause"]) == ("user_hangup", "caller_hung_up")
    assert served.line.did[-2:] == ["fall silent", "leave"]
    assert "hang up" not in " ".join(served.line.did), "there is nobody to hang up on"


async def test_the_line_breaks(providers: Providers, tmp_path: Path) -> None:
    async with serving(providers, tmp_path) as served:
        await served.greeted()
        served.line.breaks()
        end = await served.over()
    assert (end["status"], end["cause"]) == ("failed", "media_lost")


async def test_a_call_that_is_refused_meets_nobody(tmp_path: Path) -> None:
    line = ScriptedLine()

    async def ask() -> Assignment:
        raise Refused("gone", 410)

    async with aiohttp.ClientSession() as http:
        gateway = Keeping(http, ReportedCall())
        settings = GivenSettings(openai_api_key="openai-key")
        reporter = Reporter(gateway, tmp_path)
        async with build_llm_client(settings) as model:
            call = Call(
                line,
                ask,
                settings,
                seat=Seat("wrk_1"),
                llm_client=model,
                gateway=gateway,
                reporter=reporter,
                standstill=Standstill(),
            )
            async with asyncio.timeout(20):
                await call.run()
        await reporter.aclose(1.0)
    assert line.did == ["connect", "fall silent", "leave"]
