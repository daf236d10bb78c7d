"""Calls that an agent takes over from one that was lost, on a scripted line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from livekit.agents.voice import SpeechHandle

from core.jobs import VoiceWebhook
from core.models import Turn, now
from core.recordings.plan import RecordingPlan
from core.recovery import OpenTransfer, Recovered
from core.webhooks.signing import new_secret
from dev.providers import Control, Deepgram, OpenAI, Providers, Rule, Script
from tests.support.receiver import Received, receiving
from tests.worker.test_line import GREETING, Served, serving
from worker.voice.earlier.replies import reply_after

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

LINE = "Sorry, I lost you for a moment."
HOURS = "We are open from five in the afternoon."
APOLOGY = "I am sorry, something went wrong on my side. Please call again later. Goodbye."
CONTROL = Control(
    deepgram=Deepgram(phrases=["do you remember me"]),
    openai=OpenAI(
        scripts={
            "default": Script(
                rules=[
                    Rule(keywords=["opening", "hours"], turn=2, reply=HOURS),
                    # It has three messages of the caller's only if it knows the first two.
                    Rule(keywords=["remember"], turn=3, reply="You are Ann."),
                    Rule(keywords=["pressed", "42"], reply="Forty-two."),
                ],
                default="I do not know.",
            )
        }
    ),
)

HELLO = Turn(id="t0", response=GREETING, response_start_ms=200)
ANN = Turn(
    id="t1", transcript="I am Ann.", start_ms=3000, response="Hello, Ann!", response_start_ms=4000
)
ASKED = Turn(id="t2", transcript="What are your opening hours?", start_ms=9000, end_ms=10_000)
TALKED: dict[str, Any] = {"turns": [HELLO, ANN], "greeted": True}


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def providers() -> AsyncIterator[Providers]:
    async with Providers(CONTROL) as running:
        yield running


@asynccontextmanager
async def resumed(
    providers: Providers,
    folder: Path,
    *,
    told_of: dict[str, Any] | None = None,
    agent: dict[str, Any] | None = None,
    there: bool = True,
    **so_far: Any,
) -> AsyncIterator[Served]:
    """Serve a call that was answered 100 s ago, and whose agent was lost two seconds ago.

    ``there``: the line knows that the far end is there.
    """
    values: dict[str, Any] = {
        "epoch": 1,
        "lost_at": now() - timedelta(seconds=2),
        "answered_at": now() - timedelta(seconds=100),
    }
    known = {"max_duration_ms": 600_000, "recovered": Recovered(**(values | so_far))}
    async with serving(
        providers, folder, told_of=known | (told_of or {}), **(agent or {})
    ) as served:
        if there:
            await served.line.goes_on()
        yield served


async def test_it_remembers_and_answers_what_was_asked(
    providers: Providers, tmp_path: Path
) -> None:
    async with resumed(providers, tmp_path, turns=[HELLO, ANN, ASKED], greeted=True) as served:
        assert await served.turn(0) == ("", LINE)
        assert await served.turn(1) == ("what are your opening hours", HOURS)
        served.line.says("Do you remember me?")
        assert await served.turn(2) == ("do you remember me", "You are Ann.")
        line, answer, _ = served.call.turns
        (resumption,) = served.call.of("agent.resumed")
    # The answer is on the record of the turn that a former agent has reported.
    assert (answer.id, answer.start_ms) == ("t2", 9000)
    assert line.response_start_ms is not None and 100_000 <= line.response_start_ms < 160_000
    assert answer.response_start_ms is not None
    assert answer.response_start_ms >= line.response_start_ms
    assert resumption.id == "call_1_resumed_1"
    assert (resumption.data["epoch"], resumption.data["unanswered"]) == (1, True)
    assert 2000 <= resumption.data["lostMs"] < 60_000
    types = [event.type for event in served.call.events]
    assert not {"call.answered", "call.ringing", "greeting.started"} & set(types)
    assert types.index("agent.resumed") < types.index("turn")


async def test_it_says_nothing_more_if_nobody_waits(providers: Providers, tmp_path: Path) -> None:
    async with resumed(providers, tmp_path, **TALKED) as served:
        assert await served.turn(0) == ("", LINE)
        served.line.types("42")
        assert (await served.turn(1))[1] == "Forty-two."
        assert len(served.call.turns) == 2


async def test_the_agents_own_line(providers: Providers, tmp_path: Path) -> None:
    own = {"reentry_message": "Where were we?"}
    async with resumed(providers, tmp_path, agent=own, **TALKED) as served:
        assert await served.turn(0) == ("", "Where were we?")


async def test_no_line_at_all(providers: Providers, tmp_path: Path) -> None:
    async with resumed(providers, tmp_path, agent={"reentry_message": ""}, **TALKED) as served:
        resumption = await served.call.event("agent.resumed")
        assert resumption.data["unanswered"] is False
        served.line.types("42")
        assert (await served.turn(0))[1] == "Forty-two."


async def test_who_has_heard_nothing_is_greeted(providers: Providers, tmp_path: Path) -> None:
    async with resumed(providers, tmp_path) as served:
        assert await served.turn(0) == ("", GREETING)
        assert len(served.call.of("greeting.started")) == 1
        assert served.call.of("call.answered") == []
        start = served.call.turns[0].response_start_ms
        assert start is not None and start >= 100_000


async def test_a_greeting_that_had_begun_is_not_repeated(
    providers: Providers, tmp_path: Path
) -> None:
    async with resumed(providers, tmp_path, greeted=True) as served:
        assert await served.turn(0) == ("", LINE)
        served.line.types("42")
        await served.turn(1)
        assert GREETING not in {turn.response for turn in served.call.turns}


async def test_who_leaves_before_the_line_knows_them_has_not_given_up(
    providers: Providers, tmp_path: Path
) -> None:
    async with resumed(providers, tmp_path, there=False, **TALKED) as served:
        await served.call.event("agent.ready")
        served.line.hangs_up()
        end = await served.over()
    assert (end["status"], end["cause"]) == ("completed", "caller_hung_up")


async def test_a_phone_that_still_rings(providers: Providers, tmp_path: Path) -> None:
    so_far = Recovered(epoch=1, lost_at=now())
    async with serving(providers, tmp_path, told_of={"recovered": so_far}) as served:
        await served.call.event("agent.resumed")
        await served.greeted()
        assert len(served.call.of("call.answered")) == 1
        start = served.call.turns[0].response_start_ms
        assert start is not None and start < 20_000


async def test_half_typed_keys_become_a_turn(providers: Providers, tmp_path: Path) -> None:
    async with resumed(providers, tmp_path, keys="4", **TALKED) as served:
        assert await served.turn(0) == ("", LINE)
        served.line.types("2")
        assert await served.turn(1) == ("[the caller pressed 42]", "Forty-two.")


async def test_lost_too_often(providers: Providers, tmp_path: Path) -> None:
    async with resumed(providers, tmp_path, epoch=3, give_up=True, **TALKED) as served:
        end = await served.over()
        assert [turn.response for turn in served.call.turns] == [APOLOGY]
    assert (end["status"], end["reason"], end["cause"]) == ("failed", "agent_error", "agents_lost")
    assert "hang up, told: True" in served.line.did


async def test_lost_too_often_before_the_answer(providers: Providers, tmp_path: Path) -> None:
    so_far = Recovered(epoch=3, lost_at=now(), give_up=True)
    async with serving(providers, tmp_path, told_of={"recovered": so_far}) as served:
        end = await served.over()
    assert (end["cause"], served.call.turns) == ("agents_lost", [])


async def test_the_longest_duration_goes_on(providers: Providers, tmp_path: Path) -> None:
    limit = {"max_duration_ms": 100_500}
    async with resumed(providers, tmp_path, told_of=limit, **TALKED) as served:
        end = await served.over()
    assert end["reason"] == "max_duration_reached"


async def test_a_pause_goes_on(providers: Providers, tmp_path: Path) -> None:
    async with resumed(
        providers, tmp_path, paused=True, turns=[HELLO, ANN, ASKED], greeted=True
    ) as served:
        await served.call.until(lambda told: len(told.turns) == 2, "answer")
        answer = served.call.turns[1]
        # What was said before the pause stays on record; what is said now does not come on it.
        assert answer.transcript == "What are your opening hours?"
        assert (answer.response, answer.masked) == ("", True)
        assert answer.response_start_ms is not None


async def test_a_recording_goes_on_in_another_part(providers: Providers, tmp_path: Path) -> None:
    plan = {"recording": RecordingPlan(key="call.part1.wav", part=1)}
    async with resumed(providers, tmp_path, told_of=plan, **TALKED) as served:
        await served.turn(0)
        served.line.hangs_up()
        await served.over()
    assert len(served.call.of("recording.started")) == 1
    (stopped,) = served.call.of("recording.stopped")
    assert stopped.data == {"reason": "call_ended"}


async def test_an_open_transfer_ends_and_the_model_knows(
    providers: Providers, tmp_path: Path
) -> None:
    transfer = OpenTransfer(transfer_id=f"trf_{'0' * 24}", mode="warm")
    wanted = Turn(id="t2", transcript="A human!", start_ms=9000, response="One moment.")
    async with resumed(
        providers,
        tmp_path,
        agent={"transfer_number": "+15551230077", "transfer_mode": "warm"},
        turns=[HELLO, ANN, wanted],
        greeted=True,
        transfer=transfer,
        unfinished=True,
    ) as served:
        assert await served.turn(0) == ("", LINE)
        assert await served.turn(1) == ("a human", "One moment. I do not know.")
        (failed,) = served.call.of("transfer.failed")
    assert (failed.id, failed.data) == (
        f"{transfer.transfer_id}_transfer.failed",
        {"reason": "agent_lost"},
    )
    assert f"dismiss {transfer.transfer_id}" in served.line.did


async def test_a_machine_is_left_the_message_and_told_nothing_else(
    providers: Providers, tmp_path: Path
) -> None:
    message = {"voicemail_message": "Please call us back."}
    async with resumed(providers, tmp_path, agent=message, machine="voicemail", **TALKED) as served:
        end = await served.over()
    assert end["reason"] == "voicemail_reached"
    assert [turn.response for turn in served.call.turns] == ["Please call us back."]
    assert served.call.of("machine.detected") == []
    assert len(served.call.of("voicemail.left")) == 1


async def test_a_webhook_gets_the_turn_again_with_its_history(
    providers: Providers, tmp_path: Path
) -> None:
    async def answer(_: Received) -> web.StreamResponse:
        return web.json_response({"text": HOURS})

    async with receiving() as receiver:
        receiver.answers["/"] = answer
        endpoint = VoiceWebhook(
            url=f"{receiver.url}/", secret=new_secret(), context_limit=10, timeout_s=20
        )
        async with resumed(
            providers,
            tmp_path,
            told_of={"webhook": endpoint},
            agent={"voice_mode": "webhook"},
            turns=[HELLO, ANN, ASKED],
            greeted=True,
        ) as served:
            assert await served.turn(1) == ("what are your opening hours", HOURS)
        (received,) = receiver.received
    assert received.body["data"]["transcript"] == "What are your opening hours?"
    history = [(one["direction"], one["content"]) for one in received.body["recentHistory"]]
    assert history == [
        ("outbound", GREETING),
        ("inbound", "I am Ann."),
        ("outbound", "Hello, Ann!"),
    ]


class Answering:
    """The part of a session that answers the last turn."""

    def __init__(self) -> None:
        self.answer = SpeechHandle.create()

    def generate_reply(self) -> SpeechHandle:
        return self.answer


@pytest.mark.parametrize("interrupted", [True, False])
async def test_the_answer_gives_way_to_a_caller_who_speaks(interrupted: bool) -> None:
    session: Any = Answering()
    line = SpeechHandle.create()
    reply_after(session, [line])
    if interrupted:
        line.interrupt()
    line._mark_done()
    for _ in range(3):
        await asyncio.sleep(0)
    assert session.answer.interrupted is interrupted
