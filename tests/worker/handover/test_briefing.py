"""A human's briefing, and the music that the caller hears meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.jobs import CallBrief
from core.models import Agent, AgentConfig
from dev.speech.listen import level_dbfs
from worker.handover import hold_music
from worker.handover.briefing import briefing

pytestmark = pytest.mark.unit


def brief(config: AgentConfig, direction: str = "inbound", **changes: str | None) -> CallBrief:
    numbers = {"from_number": "+15550101", "to_number": "+15550202", **changes}
    return CallBrief.model_validate(
        {
            "call_id": "call_1",
            "direction": direction,
            "participant_identity": "caller",
            "metadata": {},
            "max_duration_ms": 1000,
            "agent": Agent(id="a", version=1, config=config),
            **numbers,
        }
    )


def told(
    direction: str = "inbound",
    number: str | None = "+15550101",
    *,
    recorded: bool = False,
    **fields: Any,
) -> str:
    config = AgentConfig.model_validate({"name": "Ann", **fields})
    return briefing(brief(config, direction, from_number=number), recorded=recorded)


def test_who_calls_and_what_to_do() -> None:
    assert told().startswith("You have a call from 1 5 5 5 0 1 0 1. Press 1 or say yes")
    assert "from 1 5 5 5 0 2 0 2." in told("outbound")
    assert told(number=None).startswith("You have a call. Press 1")


def test_in_the_agents_language() -> None:
    assert told(language="de-AT").startswith("Sie haben einen Anruf von 1 5 5")
    assert told(language="pl").startswith("You have a call")


def test_the_agents_own_words_and_what_to_do() -> None:
    words = told(transferBriefing="Table for {who}. ")
    assert words.startswith("Table for {who}. Press 1")


def test_the_human_is_told_of_a_recording_as_callers_are() -> None:
    disclosure = {"text": "We record."}
    assert " 0 1. This call is recorded. Press 1" in told(recorded=True, disclosure=disclosure)
    assert "Dieser Anruf wird aufgezeichnet. Zum" in told(
        recorded=True, disclosure=disclosure, language="de"
    )
    assert "recorded" not in told(recorded=True)
    assert "recorded" not in told(disclosure=disclosure)


async def test_the_music_neither_clips_nor_stops() -> None:
    loop = hold_music.loop()
    assert np.abs(loop.astype(np.int32)).max() < 32767
    step = hold_music.RATE // 2
    assert all(level_dbfs(loop[at : at + step]) > -35 for at in range(0, loop.size - step, step))
    seam = np.concatenate([loop[-50:], loop[:50]]).astype(np.int32)
    assert np.abs(np.diff(seam)).max() < 4000, "a click at the seam"
    frames = hold_music.frames()
    for _ in range(loop.size // 320 + 2):
        frame = await anext(frames)
        assert (frame.sample_rate, frame.samples_per_channel) == (hold_music.RATE, 320)
