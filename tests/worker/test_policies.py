"""An agent's configuration in whole calls: fallback providers, and what may stop its speech."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from core.models import AgentConfig
from dev.providers import Control, Deepgram, Fault, OpenAI, Rule, Script
from dev.speech import CALLER_VOICE, synthesize
from tests.support.worker_rig import LISTEN_RATE, WorkerStack

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

GREETING = "Hello."
HOURS = "We are open from five in the afternoon to eleven."
CONTROL = Control(
    deepgram=Deepgram(phrases=["what are your opening hours"]),
    openai=OpenAI(scripts={"default": Script(rules=[Rule(keywords=["hours"], reply=HOURS)])}),
)


def config(**changes: Any) -> AgentConfig:
    values: dict[str, Any] = {"name": "Test", "voice_mode": "hosted", "begin_message": GREETING}
    return AgentConfig(**(values | changes))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker() -> AsyncIterator[WorkerStack]:
    async with WorkerStack.run(CONTROL.model_copy(deep=True)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def no_faults_left(worker: WorkerStack) -> AsyncIterator[None]:
    yield
    await worker.providers.set_control(CONTROL.model_copy(deep=True))


async def test_a_sound_that_is_no_word_stops_the_agent_for_a_moment_only(
    worker: WorkerStack,
) -> None:
    async with worker.talk(config()) as (call, phone):
        await phone.say("What are your opening hours?")
        began = await phone.hears(after=asyncio.get_running_loop().time() - 0.5)
        grunt = synthesize("uh", CALLER_VOICE, LISTEN_RATE).pcm[: LISTEN_RATE // 4]
        await phone.play(np.concatenate([grunt, np.zeros(LISTEN_RATE, np.int16)]))
        await call.until(lambda told: told.turns[1:] and told.turns[1].response, "the answer")
        pauses = np.diff([at for at in phone.heard_at if at >= began]).max()
    answer = call.turns[1]
    assert (answer.response, answer.interrupted) == (HOURS, False)
    assert call.of("barge_in") == []
    assert pauses > 0.7, "it stopped, and went on"


async def test_a_voice_without_word_times_says_no_more_than_was_heard(worker: WorkerStack) -> None:
    async with worker.talk(config(tts="openai/gpt-4o-mini-tts")) as (call, phone):
        await phone.say("What are your opening hours?")
        await phone.hears(after=asyncio.get_running_loop().time() - 0.5)
        await phone.say("What are your opening hours?")
        await call.until(lambda told: told.turns[1:] and told.turns[1].interrupted, "barge-in")
    cut = call.turns[1].response
    assert 0 < len(cut) < len(HOURS)
    assert HOURS.startswith(cut)


async def test_the_next_provider_serves_the_same_turn_until_there_is_none(
    worker: WorkerStack,
) -> None:
    chains = config(
        stt=["deepgram/nova-3", "deepgram/nova-2"],
        model=["openai/first", "openai/second"],
        tts=["cartesia/sonic-3", "openai/gpt-4o-mini-tts"],
    )
    control = worker.providers.control
    control.cartesia.faults = [Fault(kind="rate_limit", times=None)]
    control.deepgram.faults = [Fault(kind="hang", times=None, model="nova-3")]
    control.openai.faults = [Fault(kind="status", times=None, model="first")]
    async with worker.talk(chains) as (call, phone):
        await phone.say("What are your opening hours?")
        await call.until(lambda told: told.turns[1:] and told.turns[1].response, "the answer")
        switches = {data["stage"]: (data["from"], data["to"]) for data in switched(call)}
        control.openai.faults = [
            Fault(kind="status", times=None, model=model) for model in ("first", "second")
        ]
        await phone.say("What are your opening hours?")
        await call.event("agent.left")
    greeting, answer, *_, apology = call.turns
    assert (greeting.response, answer.response) == (GREETING, HOURS)
    assert switches == {
        "tts": ("cartesia/sonic-3", "openai/gpt-4o-mini-tts"),
        "stt": ("deepgram/nova-3", "deepgram/nova-2"),
        "llm": ("openai/first", "openai/second"),
    }
    errors = [error.data for error in call.of("provider.error")]
    assert {error["recoverable"] for error in errors[:-1]} == {True}
    assert (errors[-1]["stage"], errors[-1]["recoverable"]) == ("llm", False)
    assert apology.response.startswith("I am sorry")
    (end,) = call.of("call.ended")
    assert (end.data["status"], end.data["reason"]) == ("failed", "agent_error")


def switched(call: Any) -> list[dict[str, str]]:
    return [event.data for event in call.of("provider.switched")]
