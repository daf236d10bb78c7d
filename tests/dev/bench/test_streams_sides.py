"""The sides of the benchmarks of streams hold several calls at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from dev.bench.barge_in import ANSWER, INTERRUPTION, QUESTION
from dev.bench.rig import control
from dev.bench.streams.rig import Rig, rig
from dev.bench.streams.sides import BARE, OURS, PIPECAT, Side, bare, ours, pipecat_bot
from dev.setup import pipecat
from dev.stack.environment import GivenSettings

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

ASKED, ANSWERED = "When do you open?", "We open at five."
CALLS = 2


async def converse(running: Rig, side: Side) -> None:
    """Hear the greeting, ask, and interrupt the next answer."""
    talk = await running.call(side)
    await talk.greeted()
    assert talk.first_ms() > 0
    assert await talk.ask(ASKED) > 0
    if side.name != PIPECAT:  # which clears at each turn of the caller
        assert not talk.call.stream.clears, "a greeting that was over was interrupted"
    assert await talk.interrupt(QUESTION, 1.0, INTERRUPTION) > 0
    assert talk.call.stream.clears
    await talk.end()
    assert not talk.call.alerts


@dataclass(frozen=True)
class Talked:
    """``calls``: by side, the conversations. ``understood``: what the STT made of all of them."""

    calls: dict[str, list[asyncio.Task[None]]]
    understood: list[str]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def talked() -> AsyncIterator[Talked]:
    """Let all sides converse at the same time: their calls take as long as people speak."""
    sides = [ours, bare, *([pipecat_bot] if pipecat.installed() else [])]
    async with rig(GivenSettings(), *sides) as running:
        replies = {ASKED: ANSWERED, QUESTION: ANSWER, INTERRUPTION: "Of course."}
        await running.stack.set_providers(control(replies))
        calls = {
            side.name: [asyncio.create_task(converse(running, side)) for _ in range(CALLS)]
            for side in running.sides
        }
        await asyncio.wait({call for several in calls.values() for call in several})
        log = await running.stack.provider_log()
    yield Talked(calls, [entry["text"] for entry in log if entry["event"] == "final"])


@pytest.mark.parametrize("side", [OURS, BARE, PIPECAT])
async def test_a_side_greets_answers_and_is_interrupted(talked: Talked, side: str) -> None:
    if side == PIPECAT and not pipecat.installed():
        pytest.skip("Pipecat is not installed; make bench installs it")
    for call in talked.calls[side]:
        await call


async def test_each_side_understood_each_of_its_callers(talked: Talked) -> None:
    said = [ASKED, QUESTION, INTERRUPTION]
    assert sorted(talked.understood) == sorted(CALLS * len(talked.calls) * said)
