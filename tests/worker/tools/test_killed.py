"""An agent is killed while its tool runs: the next one does not have it done a second time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from livekit.agents import AgentSession, ConversationItemAddedEvent, llm
from livekit.agents.utils import http_context
from openai import AsyncClient

from core.jobs import CallBrief
from core.models import Agent, AgentConfig, CallEvent, CustomTool
from core.tokens import TokenIssuer
from core.url_guard import guarded_session
from dev.providers import Control, Deepgram, OpenAI, Providers, Rule, Script, ToolCall
from dev.stack.environment import GivenSettings
from tests.support.dying_agent import Orders
from tests.support.inprocess import SECRET, Running, running, settings_in
from tests.support.scripted_line import ScriptedLine
from tests.worker.privacy.masked import Masked
from tests.worker.tools.tool_server import Server, serving
from worker.brains.hosted import HostedBrain
from worker.link.client import Gateway
from worker.link.reporter import Reporter, sweep
from worker.link.spool import Owner
from worker.privacy.gate import Gate
from worker.privacy.secrets import Secrets
from worker.timing.call_clock import CallClock
from worker.timing.turn_clock import TurnClock
from worker.tools.actions import Actions, no_transfer
from worker.tools.box import ToolBox
from worker.tools.digits import Keypad
from worker.tools.runs import runs_of
from worker.voice.providers import build_llm_client
from worker.voice.transcript import Transcript

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

ISSUER = TokenIssuer(SECRET)
ASKED = "please book a table for four"
UNSURE = "I do not know whether that worked. Shall I try again?"
CONTROL = Control(
    deepgram=Deepgram(phrases=[ASKED]),
    openai=OpenAI(
        scripts={
            "default": Script(
                rules=[
                    Rule(keywords=["table"], call=ToolCall(name="book", arguments={"people": 4})),
                    Rule(keywords=["yes"], call=ToolCall(name="book", arguments={"people": 4})),
                    Rule(role="tool", tool_name="book", keywords=["not known"], reply=UNSURE),
                    Rule(role="tool", tool_name="book", keywords=["free"], reply="It is booked."),
                ]
            )
        }
    ),
)


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def providers() -> AsyncIterator[Providers]:
    async with Providers(CONTROL) as started:
        yield started


def agent_of(server: Server, path: str) -> Agent:
    tool = CustomTool(
        name="book", description="Books a table.", url=server.url + path, timeout_ms=60_000
    )
    config = AgentConfig(name="Waiter", voice_mode="hosted", custom_tools=[tool])
    return Agent(id="waiter", version=1, config=config)


def settings_of(providers: Providers, folder: Path) -> dict[str, Any]:
    return {
        "data_dir": str(folder),
        "deepgram_base_url": providers.deepgram_base_url,
        "openai_base_url": providers.openai_base_url,
        "cartesia_base_url": providers.cartesia_base_url,
        "deepgram_api_key": "deepgram-key",
        "openai_api_key": "openai-key",
        "cartesia_api_key": "cartesia-key",
        "endpointing_ms": 300,
        "webhook_allow_private": True,
    }


async def killed_while_booking(
    gateway: Running, providers: Providers, server: Server, folder: Path
) -> str:
    """Return the id of a call whose agent was killed while its tool ran."""
    call = await gateway.call(agent=agent_of(server, "/hang"))
    orders = Orders(
        call_id=call.id,
        token=ISSUER.for_call(call.id),
        gateway_url=f"http://127.0.0.1:{gateway.port}",
        spool=folder / "spool",
        settings=settings_of(providers, folder),
        words=ASKED,
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.dying_agent", orders.model_dump_json()
    )
    try:
        async with asyncio.timeout(120):
            await server.was_asked.wait()
    finally:
        process.kill()
        await process.wait()
    return call.id


class NextAgent:
    """The agent that takes over, without a line: it reads and writes."""

    def __init__(
        self, brief: CallBrief, server: Server, reporter: Reporter, http: aiohttp.ClientSession
    ) -> None:
        self.said: list[str] = []
        clock = CallClock(ScriptedLine())
        gate = Gate(reporter.post, clock.now_ms)
        self._transcript = Transcript(gate.post, TurnClock(0.2), clock)
        secrets = Secrets()
        runs = runs_of(
            brief,
            secrets,
            gate=gate,
            reporter=reporter,
            now_ms=clock.now_ms,
            said=lambda: self._transcript,
        )
        self._box = ToolBox(
            runs=runs,
            secrets=secrets,
            http=http,
            post=gate.post,
            actions=Actions(
                tone=lambda key: asyncio.sleep(0),
                post=gate.post,
                hang_up=lambda: None,
                transfer=no_transfer,
                recording=Masked().control,
            ),
            keypad=Keypad(lambda digits: None),
        )
        self._config = agent_of(server, "/ok").config
        assert brief.recovered is not None
        self._so_far = brief.recovered

    @asynccontextmanager
    async def talking(self, model: AsyncClient, *, told: bool) -> AsyncIterator[AgentSession[None]]:
        """``told``: its model sees in the history what it must not do."""
        so_far = self._so_far if told else self._so_far.model_copy(update={"tools": []})
        open_http = partial(guarded_session, allow_private=True)
        brain = HostedBrain(self._config, model, self._box, open_http=open_http, so_far=so_far)
        session: AgentSession[None] = AgentSession(llm=brain.llm)
        session.on("conversation_item_added", self._added)
        await session.start(brain.agent, record=False)
        try:
            yield session
        finally:
            await session.aclose()
            await brain.aclose()

    def _added(self, event: ConversationItemAddedEvent) -> None:
        if isinstance(event.item, llm.ChatMessage):
            self._transcript.add(event.item)
            self.said.append(event.item.text_content or "")


async def test_a_tool_is_requested_once(providers: Providers, tmp_path: Path) -> None:
    async with (
        serving() as server,
        running(settings_in(tmp_path)) as gateway,
        http_context.open(),
        guarded_session(allow_private=True) as http,
        build_llm_client(GivenSettings(**settings_of(providers, tmp_path))) as model,
    ):
        call_id = await killed_while_booking(gateway, providers, server, tmp_path)
        assert len(server.asked) == 1
        link = Gateway(gateway.http, f"http://127.0.0.1:{gateway.port}")
        # What the worker's main process does when a job of its has died.
        await sweep(link, tmp_path / "spool")
        lost = CallEvent(type="agent.lost", data={"epoch": 0, "why": "killed"})
        await gateway.store.append(call_id, [lost], "gateway")
        token = ISSUER.for_call(call_id, epoch=1)
        brief = await link.brief(call_id, token)
        assert brief.recovered is not None and brief.recovered.unanswered is not None
        (run,) = brief.recovered.tools
        called = run.called
        assert (called.name, called.arguments, run.answered) == ("book", {"people": 4}, None)
        assert called.turn == brief.recovered.unanswered.id

        # The next agent's tool would answer. Its model may call it against what it is told.
        reporter = Reporter(link, tmp_path / "spool")
        reporter.own(Owner(call_id, token))
        heedless = NextAgent(brief, server, reporter, http)
        async with heedless.talking(model, told=False) as session:
            await session.generate_reply()
        assert (heedless.said, len(server.asked)) == ([UNSURE], 1)
        agent = NextAgent(brief, server, reporter, http)
        async with agent.talking(model, told=True) as session:
            await session.generate_reply()
            assert (agent.said, len(server.asked)) == ([UNSURE], 1)
            await session.generate_reply(user_input="yes please")
        assert agent.said[-1] == "It is booked."
        await reporter.aclose(5)
        # The caller has asked for it, and the tool can tell that it is the same use.
        assert len(server.asked) == 2
        assert len(set(server.keys)) == 1
        (run,) = await gateway.store.tools(call_id)
        assert run.answered is not None and run.answered.ok
