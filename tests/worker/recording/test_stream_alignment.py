"""A recording and its transcript against what the far end of a stream said and heard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from core.models import AgentConfig
from core.recordings.config import Recording
from dev.alignment import conversation
from dev.alignment.far_ends import FarEnd, socket_end, twilio_end
from dev.alignment.measured import Alignment, measure
from dev.standins.twilio import Network
from tests.support.alignment import channels
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall

pytestmark = [
    pytest.mark.providers,
    pytest.mark.alone,
    pytest.mark.asyncio(loop_scope="session"),
]

CONFIG = AgentConfig(
    name="Test",
    voice_mode="hosted",
    begin_message=conversation.GREETING,
    recording=Recording(enabled=True),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker(folder: Path) -> AsyncIterator[StreamWorker]:
    async with StreamWorker.run(conversation.control(), data_dir=folder) as running:
        yield running


async def talk(call: KeptCall, end: FarEnd) -> None:
    await end.hears()
    await end.quiet()
    await conversation.converse(end)
    turns = 1 + conversation.ROUND
    await call.until(lambda told: told.turns[turns - 1 :] and told.turns[-1].response, "turns")


async def measured(call: KeptCall, end: FarEnd, folder: Path) -> Alignment:
    await call.event("recording.stopped")
    await call.event("agent.left")
    return measure(channels(folder, call.id), end.side(), call.turns, conversation.SPOKEN)


async def test_on_twilio_with_drift_and_lost_frames(worker: StreamWorker, folder: Path) -> None:
    worker.twilio.network = Network(drift_ppm=200, loss=2, seed=1)
    call, phone = await worker.call(CONFIG, record=True)
    await phone.streaming()
    end = twilio_end(phone)
    await talk(call, end)
    phone.hang_up()
    found = await measured(call, end, folder)
    print(found)  # pytest shows it if the test fails
    assert not found.missed()


async def test_on_a_socket(worker: StreamWorker, folder: Path) -> None:
    async with worker.session(CONFIG, record=True) as (call, client):
        end = socket_end(client)
        await talk(call, end)
    found = await measured(call, end, folder)
    print(found)
    assert not found.missed()
