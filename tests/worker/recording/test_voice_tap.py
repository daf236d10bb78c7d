"""When a voice tap reports a stretch that is still played."""

from __future__ import annotations

import numpy as np
import pytest
from livekit import rtc

from core.audio import Pcm
from tests.worker.recording.test_recorder import Mouth
from worker.recording.resample import RATE
from worker.recording.voice_tap import VoiceTap

pytestmark = pytest.mark.unit


async def test_what_has_just_left_waits_until_its_time_is_certain() -> None:
    found: list[tuple[float, float, bool]] = []

    def played(left: float, pcm: Pcm, anew: bool) -> None:
        found.append((left, len(pcm) / RATE, anew))

    mouth = Mouth()
    tap = VoiceTap(mouth, played)
    pcm = np.full(3 * RATE, 3000, np.int16)
    await tap.capture_frame(rtc.AudioFrame(pcm.tobytes(), RATE, 1, len(pcm)))
    mouth.now = (10.05, 0.0, 0.5)  # the first echo was late
    tap.settle(before=9.5)
    assert found == []
    mouth.now = (10.0, 0.0, 1.1)
    tap.settle(before=10.15)
    assert found == [
        (10.0, 0.1, True),
        (pytest.approx(10.1), pytest.approx(0.05), False),
    ]
