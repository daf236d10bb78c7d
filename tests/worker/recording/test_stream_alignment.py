"""A recording against what the far end of a stream said and heard."""

from __future__ import annotations

import asyncio
import wave
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from core.audio import Pcm
from core.models import AgentConfig
from core.recordings.config import Recording
from dev.speech import CALLER_VOICE, synthesize
from dev.standins.twilio import Call, Network
from tests.support.alignment import offsets
from tests.support.reported_call import ReportedCall
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from tests.worker.test_call import CONTROL, GREETING
from worker.recording.resample import RATE, Resampler

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

OFF_MS = 20.0
DRIFT_MS = 5.0
FRAME_MS = 20.0
QUESTION = "what are your opening hours"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StreamWorker]:
    control = CONTROL.model_copy(deep=True)
    folder = tmp_path_factory.mktemp("data")
    async with StreamWorker.run(control, data_dir=folder) as running:
        running.folder = folder  # type: ignore[attr-defined]
        yield running


def config(**changes: Any) -> AgentConfig:
    values: dict[str, Any] = {
        "name": "Test",
        "voice_mode": "hosted",
        "begin_message": GREETING,
        "recording": Recording(enabled=True),
    }
    return AgentConfig(**(values | changes))


def recorded(worker: StreamWorker, call: KeptCall) -> tuple[Pcm, Pcm]:
    """Return the recording's channels: caller, agent."""
    folder: Path = worker.folder  # type: ignore[attr-defined]
    with wave.open(str(folder / "spool" / "recordings" / f"{call.id}.wav")) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (2, 2, RATE)
        frames = np.frombuffer(wav.readframes(wav.getnframes()), np.int16).reshape(-1, 2)
    return frames[:, 0], frames[:, 1]


def at_rate(pcm: Pcm, rate: int) -> Pcm:
    resampler = Resampler(rate)
    return np.concatenate((resampler.push(pcm), resampler.flush()))


def placed(parts: Sequence[tuple[float, Pcm]]) -> Pcm:
    """Return what was said, each part from its time in ms; a frame is sent when it is complete."""
    end = max(start + len(pcm) / 8 for start, pcm in parts)
    whole = np.zeros(round(end * 8), np.int16)
    for start, pcm in parts:
        first = round((start - FRAME_MS) * 8)
        whole[first : first + len(pcm)] = pcm
    return at_rate(whole, 8000)


def aligned(channels: tuple[Pcm, Pcm], said: Pcm, heard: Pcm) -> dict[str, list[float]]:
    found = {
        "caller": [each.ms for each in offsets(channels[0], said, RATE)],
        "agent": [each.ms for each in offsets(channels[1], heard, RATE)],
    }
    print(found)
    caller, agent = median(found["caller"]), median(found["agent"])
    origin = (caller + agent) / 2
    assert abs(caller - origin) <= OFF_MS
    for each in found.values():
        assert all(abs(ms - origin) <= OFF_MS for ms in each)
        assert max(each) - min(each) <= 2 * DRIFT_MS
        assert abs(each[-1] - each[0]) <= DRIFT_MS
    return found


def response(turn: int, told: ReportedCall) -> str | None:
    return told.turns[turn].response if told.turns[turn:] else None


async def talk(call: KeptCall, phone: Call, rounds: int) -> list[tuple[float, Pcm]]:
    await call.until(lambda told: told.turns, "greeting")
    pcm = synthesize(QUESTION, CALLER_VOICE, 8000).pcm
    said = []
    for turn in range(1, rounds + 1):
        spoken = await phone.caller.say(pcm)
        said.append((spoken.start_ms, pcm))
        await call.until(partial(response, turn), "an answer")
    await asyncio.sleep(0.5)
    phone.hang_up()
    await call.event("recording.stopped")
    return said


async def test_both_channels_are_where_twilio_has_them(worker: StreamWorker) -> None:
    worker.twilio.network = Network(drift_ppm=200)
    call, phone = await worker.call(config(), record=True)
    said = await talk(call, phone, 2)
    aligned(recorded(worker, call), placed(said), at_rate(phone.heard.pcm(), 8000))
