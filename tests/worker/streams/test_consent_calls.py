"""Whole calls whose caller is told, or asked: before they agree, nothing of them is written."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from core.logs import configure
from core.models import AgentConfig
from dev.providers import Control, Deepgram, OpenAI, Rule, Script
from dev.stack.environment import GivenSettings
from dev.standins.socket import SocketFarEnd
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from worker.opening import opening

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

DISCLOSURE, QUESTION, GREETING = "This is a machine.", "May we record you?", "How can I help?"
HOURS = "We are open until eleven."
SAID = "what are your opening hours"
CONTROL = Control(
    deepgram=Deepgram(phrases=["yes please", "never ever", SAID]),
    openai=OpenAI(
        scripts={
            "default": Script(rules=[Rule(keywords=["hours"], reply=HOURS)], default="Pardon?")
        }
    ),
)
ANSWERS = ("yes please", "never ever")


class Written:
    """Everything that the stack writes: the files of its directories, and its logs."""

    def __init__(self, folder: Path, log: io.StringIO) -> None:
        self.folder = folder
        self._log = log

    def holds(self, text: str) -> bool:
        wanted = text.lower().encode()
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        assert files, "the database, at least"
        return wanted in self._log.getvalue().lower().encode() or any(
            wanted in path.read_bytes().lower() for path in files
        )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    log = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    given = GivenSettings(log_level="DEBUG", log_format="json", log_redact=False)
    configure(given, "worker")
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(log)
    yield Written(tmp_path_factory.mktemp("written"), log)
    root.handlers[:] = before
    root.setLevel(level)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker(written: Written) -> AsyncIterator[StreamWorker]:
    control = CONTROL.model_copy(deep=True)
    async with StreamWorker.run(control, folder=written.folder) as running:
        yield running


def config(**changes: Any) -> AgentConfig:
    values = {"name": "Test", "voice_mode": "hosted", "begin_message": GREETING}
    return AgentConfig(**(values | changes))


def opt_in(**consent: Any) -> AgentConfig:
    return config(
        disclosure={"text": DISCLOSURE},
        consent={"mode": "opt_in", "question": QUESTION, **consent},
        silence_prompts=["Are you there?"],
        silence_prompt_ms=3000,
    )


@asynccontextmanager
async def attached(
    worker: StreamWorker, agent: AgentConfig
) -> AsyncIterator[tuple[KeptCall, SocketFarEnd]]:
    """Yield a call whose agent has just answered."""
    call = await worker.record(agent, direction="web")
    far = worker.far_end(call)
    await far.attach()
    try:
        await call.event("call.answered")
        yield call, far
    finally:
        await far.close()


async def asked(call: KeptCall, far: SocketFarEnd, times: int = 1) -> None:
    """Wait until the question has been heard to its end."""
    await call.until(lambda told: len(told.of("consent.asked")) >= times, "question")
    await far.heard.until_sound(far.heard.ms)
    await far.heard.until_quiet(500)


async def answer(call: KeptCall, far: SocketFarEnd, how: str) -> None:
    """Wait for the question, and answer it."""
    await call.event("consent.asked")
    if how.startswith("key"):
        await far.send("dtmf", digit=how[-1])
    else:
        await asked(call, far)
        await (far.send("text", text=how[6:]) if how.startswith("write") else far.say(how))


def consents(call: KeptCall) -> list[tuple[str, dict[str, Any]]]:
    return [(one.type, one.data) for one in call.events if one.type.startswith("consent.")]


def said(call: KeptCall) -> list[tuple[str, str]]:
    return [(turn.transcript, turn.response) for turn in call.turns if not turn.masked]


async def conversed(call: KeptCall, far: SocketFarEnd) -> None:
    """Wait for the greeting, then have one turn, whatever is kept of it."""
    await call.until(lambda told: len(consents(call)) > 1, "outcome")
    await far.heard.until_sound(far.heard.ms)
    await far.heard.until_quiet(500)
    before = len(call.turns)
    await far.say(SAID)
    await far.heard.until_sound(far.heard.ms)
    await call.until(lambda told: len(told.turns) > before, "turn")
    await far.heard.until_quiet(800)


@pytest.mark.parametrize("how", ["yes please", "key 1", "write yes please"])
async def test_granted(worker: StreamWorker, written: Written, how: str) -> None:
    before = len(worker.providers.log("openai"))
    async with attached(worker, opt_in()) as (call, far):
        await answer(call, far, how)
        granted = await call.event("consent.granted")
        assert len(worker.providers.log("openai")) == before
        await conversed(call, far)
        await far.send("end")
        await call.event("agent.left")
    by = "key" if how.startswith("key") else "words"
    assert consents(call) == [("consent.asked", {}), ("consent.granted", {"by": by})]
    shown = (await worker.gateway.shown(call)).consent
    assert (shown.mode, shown.status) == ("opt_in", "granted")
    assert shown.at is not None and abs((shown.at - granted.at).total_seconds()) < 0.01
    assert said(call) == [("", GREETING), (SAID, HOURS)]
    assert written.holds(SAID) and not any(map(written.holds, ANSWERS))
    assert [event.data for event in call.of("dtmf.received")] == (
        [{"masked": True}] if by == "key" else []
    )
    assert [one.at < granted.at for one in call.of("disclosure.spoken")] == [True]
    assert call.of("silence.prompted") == []


@pytest.mark.parametrize("how", ["never ever", "key 2", "write never ever"])
async def test_refused(worker: StreamWorker, written: Written, how: str) -> None:
    secret = f"are you the {how.replace(' ', '-')} bank"
    async with attached(worker, opt_in()) as (call, far):
        await answer(call, far, how)
        await call.event("consent.refused")
        await far.heard.until_sound(far.heard.ms)
        await far.heard.until_quiet(500)
        await far.send("text", text=secret)
        await far.heard.until_sound(far.heard.ms)
        await far.send("dtmf", digit="9")
        await far.send("end")
        await call.event("agent.left")
    by = "key" if how.startswith("key") else "words"
    assert consents(call) == [("consent.asked", {}), ("consent.refused", {"by": by})]
    assert said(call) == [] and call.turns
    assert call.of("dtmf.received")[-1].data == {"masked": True}
    assert [text for text in (*ANSWERS, secret, "Pardon?") if written.holds(text)] == []


async def test_refused_by_silence(
    worker: StreamWorker, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "ANSWER_WITHIN_S", 1.0)
    async with attached(worker, opt_in()) as (call, far):
        await call.event("consent.refused")
        await far.heard.until_sound(far.heard.ms)
    assert consents(call) == [
        ("consent.asked", {}),
        ("consent.asked", {}),
        ("consent.refused", {"by": "silence"}),
    ]
    await call.event("agent.left")
    assert said(call) == []


async def test_a_refusal_ends_the_call(worker: StreamWorker, written: Written) -> None:
    async with attached(worker, opt_in(on_refused="hang_up")) as (call, far):
        await answer(call, far, "never ever")
        assert await far.closed() == 1000
    await call.event("agent.left")
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("completed", "agent_hangup")
    assert end.data["cause"] == "consent_refused"
    assert said(call) == [] and not any(map(written.holds, ANSWERS))


@pytest.mark.parametrize("after", ["disclosure", "question"])
async def test_a_caller_who_hangs_up_has_not_agreed(
    worker: StreamWorker, written: Written, after: str
) -> None:
    async with attached(worker, opt_in()) as (call, far):
        await far.heard.until_sound()
        if after == "question":
            await asked(call, far)
            await far.say("the quick brown fox")
        await far.send("end")
        await call.event("agent.left")
    assert consents(call) == ([("consent.asked", {})] if after == "question" else [])
    assert said(call) == []
    shown = (await worker.gateway.shown(call)).consent
    assert shown.status == ("asked" if after == "question" else "not_asked")


async def test_an_announcement_is_heard_and_kept(worker: StreamWorker, written: Written) -> None:
    async with attached(worker, config(consent={"mode": "announcement"})) as (call, far):
        await far.heard.until_sound()
        await far.send("interrupt")
        await far.say(SAID)
        await call.event("disclosure.spoken")
        await call.until(lambda told: len(told.turns) > 1, "greeting")
        await far.send("end")
        await call.event("agent.left")
    first = call.turns[0]
    assert (first.response, first.interrupted) == ("A transcript of this call is kept.", False)
    assert consents(call) == []


async def test_without_consent_nothing_comes_before_the_greeting(worker: StreamWorker) -> None:
    async with attached(worker, config()) as (call, far):
        await call.until(lambda told: told.turns, "greeting")
        await far.send("end")
        await call.event("agent.left")
    assert said(call) == [("", GREETING)]
    assert consents(call) == [] and call.of("disclosure.spoken") == []


async def test_a_question_does_not_outlast_the_call(worker: StreamWorker) -> None:
    agent = opt_in().model_copy(update={"max_duration_ms": 4000, "max_duration_warning": "Soon."})
    async with attached(worker, agent) as (call, far):
        await call.event("agent.left")
    (end,) = call.of("call.ended")
    assert end.data["reason"] == "max_duration_reached"
    assert [one for one, _ in consents(call)] in ([], ["consent.asked"])
    assert said(call) == []


async def test_nothing_is_left_in_the_spool(written: Written) -> None:
    await asyncio.sleep(0)
    assert not [path for path in (written.folder / "spool").rglob("*") if path.is_file()]
