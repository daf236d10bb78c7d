"""Whole calls over our socket: a real stream worker, real plugins, offline speech."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from core.models import AgentConfig
from core.recordings.config import Redaction
from core.streams.messages import Format
from dev.standins.socket import SocketFarEnd
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from tests.worker.test_call import CONTROL, HOURS

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

MULAW = Format(encoding="audio/x-mulaw", sample_rate=8000)
HELLO = AgentConfig(name="Test", voice_mode="hosted", begin_message="Hello.")
MAY_BE_QUEUED_MS = 400


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker() -> AsyncIterator[StreamWorker]:
    async with StreamWorker.run(CONTROL.model_copy(deep=True)) as running:
        yield running


async def answered(call: KeptCall, count: int) -> None:
    """Wait until so many turns have a response."""
    what = f"response {count}"
    await call.until(lambda told: [turn for turn in told.turns if turn.response][count - 1 :], what)


async def reason(call: KeptCall) -> tuple[str, str]:
    await call.event("agent.left")
    (end,) = call.of("call.ended")
    return end.data["status"], end.data["reason"]


def seqs(events: list[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in events]


def finals(far: SocketFarEnd) -> list[tuple[str, str]]:
    """Return who said what, as the client was told."""
    return [(event["role"], event["text"]) for event in far.of("transcript") if event["final"]]


async def test_a_conversation_with_a_barge_in(worker: StreamWorker) -> None:
    async with worker.session(HELLO) as (call, far):
        await far.say("what are your opening hours")
        begin_ms = await far.heard.until_sound(far.heard.ms)
        await asyncio.sleep(1)
        await far.say("no wait I meant tomorrow")
        await answered(call, 3)
        await far.say("thank you and goodbye")
        assert await far.closed() == 1000
    assert await reason(call) == ("completed", "agent_hangup")

    ready, ended = far.events[0], far.events[-1]
    pcm = {"encoding": "pcm_s16le", "sampleRate": 16000}
    assert ready == {
        "type": "ready",
        "seq": 1,
        "sessionId": call.id,
        "callId": call.id,
        "input": pcm,
        "output": pcm,
        "resumeToken": "for-the-client",
    }
    assert seqs(far.events) == list(range(1, len(far.events) + 1))
    assert ended == {"type": "ended", "seq": len(far.events), "reason": "agent_hangup"}
    assert far.longest_queue_ms <= MAY_BE_QUEUED_MS

    cut = call.turns[1]
    (clear,) = far.of("clear")
    assert cut.interrupted and cut.response.startswith(clear["text"]) and clear["text"]
    assert len(cut.response.split()) - len(clear["text"].split()) <= 1
    assert clear["audioEndMs"] == pytest.approx(far.cleared_ms[0] - begin_ms, abs=200)
    # What was cut off is known for certain about when the next turn ends.
    assert sorted(finals(far)) == sorted(
        [
            ("agent", "Hello."),
            ("user", "what are your opening hours"),
            ("agent", cut.response),
            ("user", "no wait I meant tomorrow"),
            ("agent", "Tomorrow is fine too."),
            ("user", "thank you and goodbye"),
            ("agent", "Goodbye."),
        ]
    )
    (tool,) = far.of("tool_call")
    assert (tool["name"], tool["arguments"]) == ("end_call", {})
    partial = [event["text"] for event in far.of("transcript") if not event["final"]]
    assert "We are" in partial, "captions come with the words"
    states = [event["state"] for event in far.of("state")]
    assert states[:4] == ["listening", "speaking", "listening", "thinking"]


async def test_a_client_that_comes_back(worker: StreamWorker) -> None:
    """No second greeting, and every event that it has missed, once."""
    async with worker.session(HELLO) as (call, far):
        await far.say("what are your opening hours")
        await far.heard.until_sound(far.heard.ms)
        await asyncio.sleep(0.5)
        await far.lose()
        before = len(far.events)
        seen = far.events[-1]["seq"]
        await far.attach(resume=True, last_seq=seen - 3)
        await answered(call, 2)
        assert call.turns[1].response == HOURS and not call.turns[1].interrupted
        await far.send("end")
        assert await far.closed() == 1000
    assert await reason(call) == ("completed", "user_hangup")
    assert len(call.of("call.answered")) == 1
    assert [turn.response for turn in call.turns] == ["Hello.", HOURS]

    rest = far.events[before:]
    assert seqs(rest) == sorted(set(seqs(rest))), "in order, and none twice"
    (ready,) = [event for event in rest if event["type"] == "ready"]
    assert ready["resumeToken"] == "for-the-client"
    assert [event for event in rest if event["seq"] <= seen] == rest[: rest.index(ready)]
    assert rest[0]["seq"] > seen - 3
    kept = ("transcript", "state", "tool_call", "ended")
    missed = [event for event in far.events[:before] if event["seq"] > seen - 3]
    again = [event for event in rest if event["seq"] <= seen]
    assert again == [event for event in missed if event["type"] in kept]
    assert ("agent", HOURS) in finals(far)
    assert rest[-1]["type"] == "ended"


async def test_everything_that_a_client_may_send(worker: StreamWorker) -> None:
    async with worker.session(HELLO) as (call, far):
        await far.send("ping", at=1)
        await far.event("pong")
        await far.send("video", frame=[])
        await far.event("error", code="UNKNOWN_TYPE")
        await far.send("tool_result", id="call_1", result={})
        await far.event("error", code="NO_SUCH_TOOL_CALL")
        await far.send("text")
        await far.event("error", code="MALFORMED")
        await far.send("dtmf", digit="4")
        await answered(call, 2)
        await far.send("text", text="What are your opening hours?")
        await far.heard.until_sound(far.heard.ms)
        await asyncio.sleep(0.5)
        await far.send("interrupt")
        await call.until(lambda told: told.turns[2:] and told.turns[2].response, "the cut answer")
        await far.heard.until_quiet(300, 2)
        await far.send("end")
        assert await far.closed() == 1000
    assert await reason(call) == ("completed", "user_hangup")
    _, keys, typed = call.turns
    assert keys.transcript == "[The caller pressed 4]"
    assert typed.transcript == "What are your opening hours?"
    assert typed.interrupted and HOURS.startswith(typed.response) and typed.response != HOURS
    assert typed.response.startswith(far.of("clear")[-1]["text"])


async def test_ulaw_in_both_directions(worker: StreamWorker) -> None:
    options = {"input": MULAW, "output": MULAW}
    async with worker.session(HELLO, far=options) as (call, far):
        await far.say("what are your opening hours")
        await answered(call, 2)
        await far.close()
    assert await reason(call) == ("completed", "user_hangup")
    assert call.turns[1].response == HOURS
    wire = {"encoding": "audio/x-mulaw", "sampleRate": 8000}
    assert (far.events[0]["input"], far.events[0]["output"]) == (wire, wire)
    spoken_ms = sum(
        (turn.response_end_ms or 0) - (turn.response_start_ms or 0) for turn in call.turns
    )
    assert far.played_bytes / 8 == pytest.approx(spoken_ms, abs=500)
    assert far.longest_queue_ms <= MAY_BE_QUEUED_MS


async def test_a_client_that_never_echoes_is_paced_by_the_clock(worker: StreamWorker) -> None:
    async with worker.session(HELLO, far={"echoes": False}) as (call, far):
        await far.send("text", text="What are your opening hours?")
        await answered(call, 2)
        await far.close()
    assert call.turns[1].response == HOURS and not call.turns[1].interrupted
    assert far.longest_queue_ms <= MAY_BE_QUEUED_MS
    assert await reason(call) == ("completed", "user_hangup")


async def test_personal_data_is_removed_before_it_is_told(worker: StreamWorker) -> None:
    config = HELLO.model_copy(update={"redaction": Redaction(kinds=["card", "email"])})
    async with worker.session(config) as (call, far):
        await answered(call, 1)
        await far.send("text", text="my card is 4242 4242 4242 4242, what are your opening hours")
        await answered(call, 2)
        await far.send("dtmf", digit="4")
        await call.event("dtmf.received")
        await far.close()
    await call.event("agent.left")
    told = [str(event.data) for event in call.events]
    assert not any("4242" in each for each in told)
    assert call.turns[1].transcript == "my card is [card], what are your opening hours"
    assert [event.data for event in call.of("dtmf.received")] == [{"masked": True}]
    assert [event.data for event in call.of("redaction.applied")] == [{"counts": {"card": 1}}]
