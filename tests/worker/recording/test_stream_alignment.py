"""A recording against what the far end of a stream said and heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from core.audio import Pcm
from core.models import AgentConfig
from core.recordings.config import Recording
from dev.speech import CALLER_VOICE, synthesize
from dev.standins.twilio import Call, Network
from tests.support.alignment import aligned, channels
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from tests.worker.test_call import CONTROL, GREETING

pytestmark = [
    pytest.mark.providers,
    pytest.mark.alone,
    pytest.mark.asyncio(loop_scope="session"),
]

FRAME_MS = 20.0
QUESTION = "what are your opening hours"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker(folder: Path) -> AsyncIterator[StreamWorker]:
    async with StreamWorker.run(CONTROL.model_copy(deep=True), data_dir=folder) as running:
        yield running


def config(**changes: Any) -> AgentConfig:
    values: dict[str, Any] = {
        "name": "Test",
        "voice_mode": "hosted",
        "begin_message": GREETING,
        "recording": Recording(enabled=True),
    }
    return AgentConfig(**(values | changes))


def placed(parts: Sequence[tuple[float, Pcm]]) -> Pcm:
    """Return what was said, each part from its time in ms; a frame is sent when it is complete."""
    end = max(start + len(pcm) / 8 for start, pcm in parts)
    whole = np.zeros(round(end * 8), np.int16)
    for start, pcm in parts:
        first = round((start - FRAME_MS) * 8)
        whole[first : first + len(pcm)] = pcm
    return whole


async def answered(call: KeptCall, turns: int) -> None:
    await call.until(
        lambda told: told.turns[turns - 1 :] and told.turns[turns - 1].response, "an answer"
    )


async def talk(call: KeptCall, phone: Call, rounds: int) -> list[tuple[float, Pcm]]:
    await call.until(lambda told: told.turns, "greeting")
    pcm = synthesize(QUESTION, CALLER_VOICE, 8000).pcm
    said = []
    for turn in range(1, rounds + 1):
        spoken = await phone.caller.say(pcm)
        said.append((spoken.start_ms, pcm))
        await answered(call, turn + 1)
    await asyncio.sleep(0.5)
    phone.hang_up()
    await call.event("recording.stopped")
    await call.event("agent.left")
    return said


async def test_both_channels_are_where_twilio_has_them(worker: StreamWorker, folder: Path) -> None:
    worker.twilio.network = Network(drift_ppm=200)
    call, phone = await worker.call(config(), record=True)
    said = await talk(call, phone, 2)
    aligned(channels(folder, call.id), placed(said), phone.heard.pcm())
