"""An agent that stops or fails leaves its call to another agent, if one comes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import Agent, AgentSession

from core.jobs import CallBrief
from core.models import CustomTool
from core.recovery import Lost
from core.tools.memory import TOOL_CALLED
from dev.providers import Providers
from tests.support.scripted_line import ScriptedLine
from tests.worker import test_line
from tests.worker.test_line import Keeping, Served, serving
from tests.worker.tools import tool_server
from worker.link.client import Refused, Unavailable

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

providers = test_line.providers


class Failing(ScriptedLine):
    """A line with a defect, which shows when the session starts or ``when`` it is answered."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self._when = when

    async def start(self, session: AgentSession[None], agent: Agent) -> None:
        if self._when == "start":
            raise ValueError("a defect")
        await super().start(session, agent)

    async def answered(self) -> None:
        await super().answered()
        if self._when == "answered":
            raise ValueError("a defect")


class Answers:
    """The gateway's answers to reports of losses: True, False, or what it raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: bool | Exception) -> None:
        self.reports: list[Lost] = []
        self._answers = [*answers]
        monkeypatch.setattr(Keeping, "lost", self._lost)

    async def _lost(self, call_id: str, token: str, lost: Lost) -> bool:
        assert (call_id, token) == ("call_1", "token")
        self.reports.append(lost)
        answer = self._answers.pop(0) if self._answers[1:] else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_worker_that_stops(
    providers: Providers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(monkeypatch, Unavailable("away"), True)
    async with serving(providers, tmp_path) as served:
        await served.greeted()
        served.running.cancel()
        await served.call.event("agent.left")
    assert [report.why for report in answers.reports] == ["stopped"] * 2
    assert served.call.of("call.ended") == []
    assert served.line.did[2:] == ["start", "fall silent", "leave"], "no word, and no hang-up"


@pytest.mark.parametrize("when", ["start", "answered"])
async def test_an_agent_that_fails(
    providers: Providers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    answers = Answers(monkeypatch, True)
    line = Failing(when)
    async with serving(providers, tmp_path, line=line) as served:
        if when == "answered":
            await served.call.event("agent.ready")
            await line.answers()
        await served.call.event("agent.left")
    (report,) = answers.reports
    assert (report.why, report.detail) == ("failed", "ExceptionGroup")
    assert served.call.of("call.ended") == []
    assert line.did[-2:] == ["fall silent", "leave"]
    assert not {"drain", "hang up, told: True", "hang up, told: False"} & {*line.did}
    assert line.heard_s == 0, "no apology"


@pytest.mark.parametrize("answer", [False, Refused("no such call", 404), Unavailable("away")])
async def test_if_nobody_comes_the_call_ends(
    providers: Providers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr("worker.pulse.report._ITSELF_WITHIN_S", 0.3)
    Answers(monkeypatch, answer)
    line = Failing("answered")
    async with serving(providers, tmp_path, line=line) as served:
        await served.call.event("agent.ready")
        await line.answers()
        end = await served.over()
    assert (end["status"], end["reason"], end["cause"]) == (
        "failed",
        "agent_error",
        "worker_failed",
    )
    assert line.did[3:] == ["drain", "hang up, told: True", "fall silent", "leave"]
    assert served.call.turns[-1].response.startswith("I am sorry"), "an apology"


class Asked:
    """The gateway's answer to a process that stood still, once ``known`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, gone: bool) -> None:
        self.asked, self.known = asyncio.Event(), asyncio.Event()
        self._gone = gone
        monkeypatch.setattr(Keeping, "brief", self._brief)
        monkeypatch.setattr("worker.pulse.standing._KNOWN_WITHIN_S", 60.0)

    async def _brief(self, *_: object) -> CallBrief:
        self.asked.set()
        await self.known.wait()
        if self._gone:
            raise Refused("HTTP 410", 410)
        return test_line.brief()

    async def after_a_standstill(self, served: Served) -> None:
        served.standstill.start()
        time.sleep(2.0)  # noqa: ASYNC251  as SIGSTOP does
        async with asyncio.timeout(20):
            await self.asked.wait()


@pytest.mark.parametrize("gone", [True, False])
async def test_a_process_that_stood_still_hangs_up_only_if_it_was_not_replaced(
    providers: Providers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    gateway = Asked(monkeypatch, gone=gone)
    async with serving(providers, tmp_path) as served:
        await served.greeted()
        await gateway.after_a_standstill(served)
        served.line.says("Thank you, and goodbye!")
        assert (await served.turn(1))[1] == "Goodbye."
        gateway.known.set()
        await served.call.event("agent.left")
    hung_up = [what for what in served.line.did if what.startswith("hang up")]
    assert bool(hung_up) != gone
    assert bool(served.call.of("call.ended")) != gone


@pytest.mark.parametrize("gone", [True, False])
async def test_its_tools_wait_until_it_is_known(
    providers: Providers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    gateway = Asked(monkeypatch, gone=gone)
    async with tool_server.serving() as server:
        tool = CustomTool(name="find_table", description="Finds one.", url=f"{server.url}/ok")
        told = {"remembers": True}
        async with serving(providers, tmp_path, told_of=told, custom_tools=[tool]) as served:
            await served.greeted()
            await gateway.after_a_standstill(served)
            served.line.says("Is there a table for tonight?")
            await served.call.event(TOOL_CALLED)
            assert server.asked == []
            gateway.known.set()
            if gone:
                await served.call.event("agent.left")
            else:
                assert (await served.turn(1))[1] == "There is one."
    assert len(server.asked) == (0 if gone else 1)
