"""The sides of the benchmarks of streams hold several calls at once."""

from __future__ import annotations

import asyncio

import pytest

from dev.bench.barge_in import ANSWER, INTERRUPTION, QUESTION
from dev.bench.rig import control
from dev.bench.streams.rig import Rig, Start, rig
from dev.bench.streams.sides import PIPECAT, bare, ours, pipecat_bot
from dev.setup import pipecat
from dev.stack.environment import GivenSettings

pytestmark = pytest.mark.stack

ASKED, ANSWERED = "When do you open?", "We open at five."


async def converse(running: Rig) -> None:
    """Hear the greeting, ask, and interrupt the next answer."""
    talk = await running.call(running.sides[0])
    await talk.greeted()
    assert talk.first_ms() > 0
    assert await talk.ask(ASKED) > 0
    if running.sides[0].name != PIPECAT:  # which clears at each turn of the caller
        assert not talk.call.stream.clears, "a greeting that was over was interrupted"
    assert await talk.interrupt(QUESTION, 1.0, INTERRUPTION) > 0
    assert talk.call.stream.clears
    await talk.end()
    assert not talk.call.alerts


@pytest.mark.parametrize("side", [ours, bare, pipecat_bot])
async def test_a_side_greets_answers_and_is_interrupted(side: Start) -> None:
    if side is pipecat_bot and not pipecat.installed():
        pytest.skip("Pipecat is not installed; make bench installs it")
    async with rig(GivenSettings(), side) as running:
        replies = {ASKED: ANSWERED, QUESTION: ANSWER, INTERRUPTION: "Of course."}
        await running.stack.set_providers(control(replies))
        await asyncio.gather(*(converse(running) for _ in range(2)))
        log = await running.stack.provider_log()
    understood = [entry["text"] for entry in log if entry["event"] == "final"]
    assert sorted(understood) == sorted(2 * [*replies])
