"""Whole calls over Twilio's Media Streams: a real stream worker, real plugins, offline speech."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from core.models import AgentConfig
from dev.speech import AGENT_VOICE, synthesize
from dev.standins.twilio import Call
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from tests.worker.test_call import CONTROL, GREETING, HOURS

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

GRACE_S = 2.0
MAY_BE_QUEUED_MS = 400
CLOSED_BY_SERVER = 31921  # Twilio notes it, and goes on with the next verb


def config(**changes: Any) -> AgentConfig:
    values: dict[str, Any] = {
        "name": "Test",
        "voice_mode": "hosted",
        "begin_message": GREETING,
    }
    return AgentConfig(**(values | changes))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker() -> AsyncIterator[StreamWorker]:
    async with StreamWorker.run(CONTROL.model_copy(deep=True), grace_s=GRACE_S) as running:
        yield running


async def greeted(worker: StreamWorker, **changes: Any) -> tuple[KeptCall, Call]:
    call, phone = await worker.call(config(**changes))
    await call.until(lambda told: told.turns, "greeting")
    return call, phone


async def answered(call: KeptCall, turns: int) -> None:
    """Wait until there are so many turns, and the last has a response."""
    await call.until(
        lambda told: told.turns[turns - 1 :] and told.turns[turns - 1].response, "an answer"
    )


async def reason(call: KeptCall) -> tuple[str, str]:
    """Return how the call ended, once the worker has left it."""
    await call.event("agent.left")
    (end,) = call.of("call.ended")
    return end.data["status"], end.data["reason"]


async def test_a_conversation(worker: StreamWorker) -> None:
    call, phone = await greeted(worker)
    said = await phone.caller.say("what are your opening hours")
    answered_ms = await phone.heard.until_sound(said.end_ms)
    await call.until(lambda told: told.turns[1:] and told.turns[1].response, "answer")
    await phone.caller.say("thank you and goodbye")
    assert await phone.ended() == "completed"
    assert await reason(call) == ("completed", "agent_hangup")
    assert [turn.response for turn in call.turns] == [GREETING, HOURS, "Goodbye."]
    assert phone.stream.longest_queue_ms <= MAY_BE_QUEUED_MS
    assert [alert.code for alert in phone.alerts] == [CLOSED_BY_SERVER]
    turn = call.turns[1]
    assert turn.end_ms is not None and turn.response_start_ms is not None
    # The record's offsets are those of the phone, which sends late on a busy machine.
    assert turn.end_ms == pytest.approx(said.end_ms, abs=150)
    assert turn.response_start_ms == pytest.approx(answered_ms, abs=150)


async def test_keys(worker: StreamWorker) -> None:
    call, phone = await greeted(worker, begin_message="Hello.")
    await phone.caller.press("42")
    await call.until(lambda told: told.turns[1:] and told.turns[1].response, "an answer")
    phone.hang_up()
    assert await reason(call) == ("completed", "user_hangup")
    assert call.turns[1].transcript == "[The caller pressed 42]"


async def test_a_lost_socket_is_replaced(worker: StreamWorker) -> None:
    """The greeting is not repeated, and goes on where the caller stopped hearing it."""
    call, phone = await worker.call(config())
    begin_ms = await phone.heard.until_sound()
    await asyncio.sleep(1)
    phone.caller.drop()
    await phone.streaming(2)
    await call.until(lambda told: told.turns, "greeting")
    assert call.turns[0].response == GREETING and not call.turns[0].interrupted
    end_ms = await phone.heard.until_quiet()
    spoken_ms = (call.turns[0].response_end_ms or 0) - (call.turns[0].response_start_ms or 0)
    assert end_ms - begin_ms == pytest.approx(spoken_ms, abs=300)
    said = await phone.caller.say("what are your opening hours")
    await phone.heard.until_sound(said.end_ms)
    phone.hang_up()
    assert await reason(call) == ("completed", "user_hangup")
    assert len(call.of("call.answered")) == 1


async def test_words_before_the_socket_was_lost_are_answered(worker: StreamWorker) -> None:
    call, phone = await greeted(worker)
    await phone.caller.say("what are your opening hours")
    phone.caller.drop()
    await phone.streaming(2)
    await call.until(lambda told: told.turns[1:] and told.turns[1].response, "answer")
    assert call.turns[1].response == HOURS
    phone.hang_up()
    await call.event("agent.left")


async def test_what_is_said_to_a_lost_socket_was_not_heard(worker: StreamWorker) -> None:
    call, phone = await greeted(worker, begin_message="Hello.")
    phone.after_break = "callback"
    said = await phone.caller.say("what are your opening hours")
    start_ms = await phone.heard.until_sound(said.end_ms)
    await asyncio.sleep(1)
    played = played_words(phone.heard.ms - start_ms)
    phone.caller.drop()
    await call.event("agent.left")
    cut = call.turns[1]
    assert HOURS.startswith(cut.response)
    assert len(cut.response.split()) == pytest.approx(played, abs=1), cut.response


async def test_a_socket_that_does_not_come_back(worker: StreamWorker) -> None:
    call, phone = await greeted(worker, begin_message="Hello.")
    phone.after_break = "callback"
    phone.caller.drop()
    assert await reason(call) == ("failed", "agent_error")
    assert call.of("agent.left")[0].data == {"cause": "leg_lost"}


def played_words(ms: float) -> int:
    """Return how many words of HOURS have begun after so much of it was played."""
    return sum(word.start_ms < ms for word in synthesize(HOURS, AGENT_VOICE, 8000).words)


def played_ms(phone: Call) -> float:
    """Return how much the caller has been played, when nothing is left in the queue."""
    return phone.stream.received_ms - sum(clear.dropped_ms for clear in phone.stream.clears)


async def barges_in(worker: StreamWorker, after_s: list[float]) -> list[tuple[str, int]]:
    """Interrupt the agent so often, each time after so long.

    Return the text of the record, and how many words Twilio's stand-in had begun to play.
    """
    call, phone = await greeted(worker, begin_message="Hello.")
    played: list[int] = []
    for number, wait_s in enumerate(after_s, 1):
        before_ms = played_ms(phone)
        said = await phone.caller.say("what are your opening hours")
        await phone.heard.until_sound(said.end_ms)
        await asyncio.sleep(wait_s)
        await phone.caller.say("no wait I meant tomorrow")
        assert len(phone.stream.clears) == number
        played.append(played_words(played_ms(phone) - before_ms))
        await answered(call, 2 * number + 1)
    phone.hang_up()
    await call.event("agent.left")
    cut = [turn.response for turn in call.turns if turn.interrupted]
    assert len(cut) == len(after_s) and all(HOURS.startswith(text) for text in cut)
    assert all(clear.played_after_ms <= 20 for clear in phone.stream.clears)
    assert phone.stream.longest_queue_ms <= MAY_BE_QUEUED_MS
    return list(zip(cut, played, strict=True))


async def test_the_record_has_what_was_heard(worker: StreamWorker) -> None:
    """Thirty barge-ins at random moments, to a word."""
    dice = random.Random(17)
    moments = [[dice.uniform(0.1, 3) for _ in range(5)] for _ in range(6)]
    calls = await asyncio.gather(*(barges_in(worker, each) for each in moments))
    cut = [each for call in calls for each in call]
    assert len(cut) == 30
    assert [each for each in cut if abs(len(each[0].split()) - each[1]) > 1] == []
