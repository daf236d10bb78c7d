"""An agent's policies as a phone hears them through the SIP service."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from dev.phone import Phone
from dev.speech import AGENT_VOICE, synthesize
from dev.speech.listen import frame_levels
from tests.conftest import Gateway
from tests.support.calls import Placed, request

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

GREETING = "Welcome to the corner restaurant, how can I help you?"
PROMPT = "Are you still there?"
WARNING = "We have to come to an end soon."
ABOVE_THE_PLACE = -32.0  # dBFS
FAST = {
    "name": "Fast",
    "voiceMode": "hosted",
    "beginMessage": GREETING,
    "voiceSpeed": 1.5,
    "ambientSound": "office",
    "silencePrompts": [PROMPT],
    "silencePromptMs": 3_000,
    "maxDurationWarning": WARNING,
}


async def test_speed_background_prompt_and_warning(gateway: Gateway, phone: Phone) -> None:
    agent = await gateway.post("/v1/agents", json=FAST)
    assert "X-Ignored-Fields" not in agent.headers
    body = request(phone.address, agent=agent.body["id"], max_duration_s=15)
    placed = await Placed.place(gateway, body)
    call = await phone.next_call(10)
    await call.answered(10)
    greeting, prompt, warning = [
        await call.listen(20, end_silence_ms=500, threshold_dbfs=ABOVE_THE_PLACE) for _ in range(3)
    ]
    await call.hangup()
    record = await placed.record()

    at_normal_speed = synthesize(GREETING, AGENT_VOICE, 8000).duration_ms
    assert greeting.end_ms - greeting.start_ms < 0.85 * at_normal_speed
    assert [turn["response"] for turn in record["transcripts"]] == [GREETING, PROMPT, WARNING]
    assert prompt.start_ms - greeting.end_ms > 2_800
    assert warning.start_ms > 7_400, "half way"

    quiet = call.recording.received[int(8 * (greeting.end_ms + 1_000)) : int(8 * prompt.start_ms)]
    level = float(np.median(frame_levels(quiet, 8000)))
    assert -60 < level < -35, "a place behind the voice, far below it"


async def test_without_one_nothing_is_behind_the_voice(gateway: Gateway, phone: Phone) -> None:
    placed = await Placed.place(gateway, request(phone.address))
    call = await phone.next_call(10)
    await call.answered(10)
    greeting = await call.listen(20)
    await asyncio.sleep(0.5)
    quiet = call.recording.received[int(8 * (greeting.end_ms + 200)) :]
    await call.hangup()
    await placed.record()
    assert float(np.max(frame_levels(quiet, 8000))) < -60
