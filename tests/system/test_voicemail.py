"""Calls over SIP that machines answer, and digits that the agent collects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from core.audio import Pcm
from dev import scenario
from dev.phone import Phone, PhoneCall
from dev.providers import Control, Deepgram, OpenAI, Rule, Script, ToolCall
from dev.speech import CALLER_VOICE, Recognizer, normalize, synthesize
from dev.speech.listen import frame_levels, level_dbfs
from dev.stack import Stack
from tests.conftest import ACME, GREETING, Gateway
from tests.support.calls import Placed, request

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

ANNOUNCEMENT = "Please leave a message after the tone."
FISHING = "Sam is out fishing today."
MENU = "For a table tonight, press one."
MESSAGE = "Your table is booked for Sunday."
PAY = "I want to pay."
ASK = "Type your number."
PHRASES = [ANNOUNCEMENT, FISHING, MENU, PAY]
RULES = [
    Rule(equals=FISHING, call=ToolCall(name="leave_voicemail")),
    Rule(equals=PAY, reply=ASK, call=ToolCall(name="collect_digits", arguments={"digits": 8})),
    Rule(
        role="tool",
        tool_name="collect_digits",
        pattern=r"pressed (?P<number>\d+)\.",
        reply="You typed $number.",
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def script(stack: Stack) -> AsyncIterator[None]:
    control = Control(
        deepgram=Deepgram(phrases=PHRASES),
        openai=OpenAI(scripts={"default": Script(rules=RULES, default="Sorry?")}),
    )
    await stack.set_providers(control)
    yield
    await stack.set_providers(scenario.control())


class Dialled:
    """A call of its own agent, answered by the phone."""

    def __init__(self, gateway: Gateway, placed: Placed, call: PhoneCall) -> None:
        self._gateway = gateway
        self._placed = placed
        self.call = call

    @classmethod
    async def dial(cls, gateway: Gateway, phone: Phone, **agent: Any) -> Dialled:
        values = {"name": "Sam's table", "voiceMode": "hosted", "beginMessage": GREETING}
        made = await gateway.post("/v1/agents", json={**values, **agent})
        assert made.status == 200, made.body
        placed = await Placed.place(gateway, request(phone.address, agent=made.body["id"]))
        call = await phone.next_call(10)
        await call.answered(10)
        return cls(gateway, placed, call)

    async def record(self) -> dict[str, Any]:
        return await self._placed.record()

    async def timeline(self) -> str:
        path = f"/v1/calls/{self._placed.call_id}/events"
        async with self._gateway.session.get(path, headers=ACME) as events:
            return await events.text()


def announcement(text: str) -> Pcm:
    """Return the spoken text after half a second of silence, as machines begin."""
    return np.concatenate([np.zeros(4000, np.int16), synthesize(text, CALLER_VOICE, 8000).pcm])


def beep() -> Pcm:
    """Return half a second of silence, then 0.4 s of 1 kHz."""
    times = np.arange(3200) / 8000
    tone = (np.sin(2 * np.pi * 1000 * times) * 8000).astype(np.int16)
    return np.concatenate([np.zeros(4000, np.int16), tone])


async def recognised(pcm: Pcm) -> str:
    ear = Recognizer([MESSAGE, GREETING])
    return normalize((await asyncio.to_thread(ear.recognize, pcm, 8000)).text)


async def test_the_message_is_left_after_the_beep(gateway: Gateway, phone: Phone) -> None:
    dialled = await Dialled.dial(gateway, phone, voicemailMessage=MESSAGE)
    call = dialled.call
    await call.play(announcement(ANNOUNCEMENT))
    tone = await call.play(beep())
    heard = await call.listen(20, since_ms=tone.end_ms)
    ended = await call.ended(20)
    assert (ended.by, ended.how) == ("remote", "bye")
    assert heard.start_ms > tone.end_ms
    assert await recognised(heard.pcm) == normalize(MESSAGE)

    record = await dialled.record()
    assert (record["status"], record["disconnectionReason"]) == ("completed", "voicemail_reached")
    said = [normalize(turn["transcript"]) for turn in record["transcripts"]]
    assert normalize(ANNOUNCEMENT) in said
    assert record["transcripts"][-1]["response"] == MESSAGE
    timeline = await dialled.timeline()
    assert '"kind":"voicemail"' in timeline.replace(" ", "")
    assert "event: voicemail.left\n" in timeline


async def test_no_ambient_sound_is_left_in_the_box(gateway: Gateway, phone: Phone) -> None:
    """It plays during the call, and has stopped when the message begins."""
    fields = {"voicemailMessage": MESSAGE, "beginMessage": None, "ambientSound": "coffee-shop"}
    dialled = await Dialled.dial(gateway, phone, **fields)
    call = dialled.call
    async with asyncio.timeout(20):
        while level_dbfs(call.recording.received[-4000:]) < -50:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    began = len(call.recording.received)
    await call.play(announcement(ANNOUNCEMENT))
    tone = await call.play(beep())
    heard = await call.listen(20, since_ms=tone.end_ms)
    await call.ended(20)
    assert await recognised(heard.pcm) == normalize(MESSAGE)
    # From the first word to the hang-up, there is silence between the words.
    received = call.recording.received
    behind = frame_levels(received[began : began + 8000], 8000)
    message = frame_levels(received[int(heard.start_ms * 8) :], 8000)
    assert np.quantile(behind, 0.05) > -75 > np.quantile(message, 0.05)
    assert (await dialled.record())["disconnectionReason"] == "voicemail_reached"


async def test_the_agent_itself_takes_it_for_a_voicemail_box(
    gateway: Gateway, phone: Phone
) -> None:
    fields = {"voicemailMessage": MESSAGE, "onVoicemail": "continue", "beginMessage": None}
    dialled = await Dialled.dial(gateway, phone, **fields)
    await dialled.call.play(announcement(FISHING))
    heard = await dialled.call.listen(20)
    await dialled.call.ended(20)
    assert await recognised(heard.pcm) == normalize(MESSAGE)
    record = await dialled.record()
    assert record["disconnectionReason"] == "voicemail_reached"
    told = [(normalize(turn["transcript"]), turn["response"]) for turn in record["transcripts"]]
    assert told == [(normalize(FISHING), ""), ("", MESSAGE)]


async def test_a_menu_is_hung_up_on(gateway: Gateway, phone: Phone) -> None:
    dialled = await Dialled.dial(gateway, phone, onIvr="hang_up", beginMessage=None)
    await dialled.call.play(announcement(MENU))
    await dialled.call.ended(20)
    record = await dialled.record()
    assert (record["status"], record["disconnectionReason"]) == ("completed", "ivr_reached")
    # The pause at its comma may split the turn in two.
    said = " ".join(turn["transcript"] for turn in record["transcripts"])
    assert normalize(said) == normalize(MENU)


async def test_a_person_has_the_usual_conversation_and_types_a_number(
    gateway: Gateway, phone: Phone
) -> None:
    fields = {"voicemailMessage": MESSAGE, "onIvr": "hang_up", "beginMessage": "Good evening."}
    dialled = await Dialled.dial(gateway, phone, **fields)
    call = dialled.call
    await call.listen(20, end_silence_ms=300)
    await call.say(PAY)
    await call.listen(20, end_silence_ms=300)
    await call.dtmf("47#")
    await call.listen(20, end_silence_ms=300)
    await call.hangup()
    record = await dialled.record()
    assert record["disconnectionReason"] == "user_hangup"
    turns = [(normalize(turn["transcript"]), turn["response"]) for turn in record["transcripts"]]
    assert turns == [("", "Good evening."), (normalize(PAY), f"{ASK} You typed 47.")]
    assert "event: machine.detected\n" not in await dialled.timeline()
