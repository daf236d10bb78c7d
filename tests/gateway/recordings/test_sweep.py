"""The gateway stores the recordings that its machine's workers left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.models import new_id
from core.recordings.plan import RecordingPlan
from gateway.calls.timeline import Watch
from gateway.keys import TIMELINE
from recordings.spool import RecordingFile
from recordings.wav import DATA_AT
from tests.support.inprocess import Running, running, settings_in
from tests.support.recordings import RATE, recorded_call, tone

pytestmark = pytest.mark.store


def left_behind(folder: Path, call_id: str, plan: RecordingPlan) -> None:
    file = RecordingFile.create(folder / "spool" / "recordings", call_id, plan)
    file.append(np.stack([tone(1), tone(1)], axis=1))
    file.close()


async def seen(gateway: Running, call_id: str, type: str) -> bool:
    return await Watch(call_id, gateway.store, gateway.app[TIMELINE]).until(type, timeout_s=20)


async def test_a_recording_of_a_worker_that_is_gone(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        recorded = await recorded_call(gateway)
        left_behind(tmp_path, recorded.call.id, RecordingPlan(key=recorded.key))
        assert await seen(gateway, recorded.call.id, "recording.stored")
        answer = await recorded.get()
        assert (answer.status, len(answer.body)) == (200, DATA_AT + 4 * RATE)


@pytest.mark.attack
async def test_a_plan_that_is_not_the_calls_is_set_aside(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        recorded, unknown = await recorded_call(gateway), new_id("call")
        for call_id in (recorded.call.id, unknown):
            left_behind(tmp_path, call_id, RecordingPlan(key=f"t-rival/{call_id}.wav"))
        assert await seen(gateway, recorded.call.id, "recording.failed")
        assert (await recorded.get()).status in (404, 425)
        assert await recorded.events("recording.stored") == []
