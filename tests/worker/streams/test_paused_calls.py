"""A whole call whose recording is paused in the middle of what the caller says."""

from __future__ import annotations

import asyncio

import pytest

from core.models import AgentConfig, CallEvent, new_id
from core.recordings.command import Action, Command
from dev.providers import Control, Deepgram
from dev.speech import CALLER_VOICE, synthesize
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

BEFORE, AFTER = "I want to pay by card", "and please send me the bill tomorrow"
SECRET = "four two four two four two four two four two four two four two four two"
SAID = f"{BEFORE} {SECRET} {AFTER}"
AGENT = AgentConfig(name="Test", voice_mode="hosted", begin_message="Hello.")


async def command(worker: StreamWorker, call: KeptCall, action: Action) -> CallEvent:
    body = Command(id=new_id("cmd"), action=action).model_dump_json(by_alias=True)
    headers = {"Authorization": f"Bearer {worker.tokens.for_stream(call.id)}"}
    url = f"{worker.worker_url}/sessions/{call.id}"
    async with worker.http.post(url, data=body, headers=headers) as answer:
        assert answer.status == 204
    return await call.event(f"recording.{action}d")


async def test_words_before_and_after_a_pause_are_kept() -> None:
    words = synthesize(SAID, CALLER_VOICE, 16000).words
    first, last = len(BEFORE.split()), len(f"{BEFORE} {SECRET}".split()) - 1
    async with (
        StreamWorker.run(Control(deepgram=Deepgram(phrases=[SAID]))) as worker,
        worker.session(AGENT) as (call, far),
    ):
        await far.heard.until_quiet(500)
        saying = asyncio.create_task(far.say(SAID))
        await asyncio.sleep(words[first].end_ms / 1000)
        paused = await command(worker, call, "pause")
        await asyncio.sleep((words[last].start_ms - words[first].end_ms) / 1000)
        resumed = await command(worker, call, "resume")
        await saying
        await call.until(lambda told: told.turns[1:] and told.turns[1].response, "answer")
        await far.send("end")
        await call.event("agent.left")
    (answered,) = call.of("call.answered")
    begin, end = (
        round((event.at - answered.at).total_seconds() * 1000) for event in (paused, resumed)
    )
    turn = call.turns[1]
    assert turn.masked and turn.response
    kept = turn.transcript.split()
    assert [word.text for word in turn.words] == kept
    assert kept[:3] == BEFORE.split()[:3] and kept[-4:] == AFTER.split()[-4:]
    assert all(word.end_ms < begin or word.start_ms > end for word in turn.words)
    assert "four" not in kept and "two" not in kept
    told = [event.data["transcript"] for event in call.of("turn") if event.data["id"] == turn.id]
    assert set(told) == {turn.transcript}, "each report of it"
