"""Whole conversations: the transcript equals what was said and what the phone heard."""

from __future__ import annotations

import asyncio
from pathlib import Path
from statistics import median

import pytest

from dev import scenario
from dev.caller import converse
from dev.phone import Phone, PhoneCall
from dev.scenario import (
    ENOUGH,
    ENOUGH_ANSWER,
    GOODBYE,
    GOODBYE_ANSWER,
    OPENING,
    OPENING_ANSWER,
    Interrupt,
    Speak,
    Step,
)
from dev.speech import Recognizer, normalize
from tests.conftest import GREETING, Gateway
from tests.support.calls import Placed, request

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

HELD_AT_ONCE = 3
SENTENCES = (GREETING, OPENING_ANSWER, ENOUGH_ANSWER, GOODBYE_ANSWER)
STEPS: tuple[Step, ...] = (
    Speak(OPENING, OPENING_ANSWER),
    Speak(ENOUGH, ENOUGH_ANSWER),
    Speak(GOODBYE, GOODBYE_ANSWER),
)


class Talk:
    """One scripted call; ``heard`` has the agent's words as the phone received them."""

    def __init__(self, gateway: Gateway, phone: Phone) -> None:
        self._gateway = gateway
        self._phone = phone
        self.heard: list[str] = []
        self.call: PhoneCall | None = None

    async def hold(self, number: int, ear: Recognizer) -> list[tuple[str, str]]:
        """Hold the call; return each recorded turn as (caller, agent), normalized."""
        body = request(self._phone.address, to_phone_number=f"+1555777{number:04d}")
        placed = await Placed.place(self._gateway, body)
        call = self.call = await self._phone.next_call(10)
        await call.answered(10)
        greeting = await call.listen(30)
        self.heard.append(await _recognise(ear, greeting.pcm))
        try:
            async for exchange in converse(call, STEPS):
                self.heard.append(await _recognise(ear, exchange.heard.pcm))
        except TimeoutError as error:
            so_far = await self._gateway.get(f"/v1/calls/{placed.call_id}")
            error.add_note(f"call {number}: {so_far.body['transcripts']}")
            raise
        await call.ended(20)
        record = await placed.record()
        assert record["disconnectionReason"] == "agent_hangup"
        return [
            (normalize(turn["transcript"]), normalize(turn["response"]))
            for turn in record["transcripts"]
        ]


async def _recognise(ear: Recognizer, pcm: object) -> str:
    return normalize((await asyncio.to_thread(ear.recognize, pcm, 8000)).text)  # type: ignore[arg-type]


@pytest.mark.alone
async def test_the_transcript_equals_what_was_said_in_20_of_20_calls(
    gateway: Gateway, tmp_path: Path
) -> None:
    expected = [("", normalize(GREETING))] + [
        (normalize(step.text), normalize(step.answer)) for step in STEPS if isinstance(step, Speak)
    ]
    lines = asyncio.Semaphore(HELD_AT_ONCE)
    async with asyncio.TaskGroup() as calls:
        for number in range(1, 21):
            calls.create_task(_one(gateway, number, expected, lines, tmp_path))


async def _one(
    gateway: Gateway,
    number: int,
    expected: list[tuple[str, str]],
    lines: asyncio.Semaphore,
    recordings: Path,
) -> None:
    ear = Recognizer(SENTENCES)
    async with lines, Phone() as phone:
        talk = Talk(gateway, phone)
        turns = await talk.hold(number, ear)
    heard = [answer for _, answer in expected]
    if (turns, talk.heard) != (expected, heard) and talk.call is not None:
        talk.call.save(recordings / f"call-{number}.wav")
    assert turns == expected, f"call {number}: {recordings}"
    assert talk.heard == heard, f"call {number}: {recordings}"


async def test_the_demo_conversation_with_an_interruption_a_tool_and_a_key(
    gateway: Gateway, phone: Phone, tmp_path: Path
) -> None:
    placed = await Placed.place(gateway, request(phone.address, agent="restaurant"))
    call = await phone.next_call(10)
    await call.answered(10)
    await call.listen(30)
    exchanges = [exchange async for exchange in converse(call, scenario.STEPS)]
    await call.ended(20)
    record = await placed.record()
    told = {normalize(turn["transcript"]): turn for turn in record["transcripts"]}
    unseen_ms = []
    for exchange in exchanges:
        match exchange.step:
            case Speak(text=text, answer=answer):
                turn = told[normalize(text)]
                assert normalize(turn["response"]) == normalize(answer)
                assert "transport" in turn["latency"]
                unseen_ms.append(exchange.latency_ms - turn["latency"]["total"])
            case Interrupt(question=question, text=text, answer=answer):
                cut = told[normalize(question)]
                assert cut["interrupted"]
                heard = normalize(cut["response"])
                whole = normalize(scenario.SPECIALS_ANSWER)
                assert whole.startswith(heard) and heard != whole
                assert normalize(told[normalize(text)]["response"]) == normalize(answer)
    # The recorded latency includes the transport to the phone. The rest are packets, and buffers
    # that a busy machine fills faster than they are read.
    assert abs(median(unseen_ms)) < 500
    events = await gateway.session.get(
        f"/v1/calls/{placed.call_id}/events", headers=gateway.headers
    )
    timeline = await events.text()
    for event in ("tool.called", "dtmf.received", "barge_in", "agent.ready"):
        assert f"event: {event}\n" in timeline
    path = tmp_path / "call.wav"
    call.save(path)
    assert path.stat().st_size > 8000 * 2 * 2 * record["durationSeconds"] * 0.9
