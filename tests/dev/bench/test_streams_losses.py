"""The silence around the loss of an agent, and the section about it."""

from __future__ import annotations

import numpy as np
import pytest

from core.audio import Pcm
from dev.bench.streams.losses import Losses, section, silence_ms

pytestmark = pytest.mark.unit


def heard(*parts: tuple[int, bool]) -> Pcm:
    """Return parts of so many ms, with sound or without."""
    tone = (8000 * np.sin(np.arange(8 * 20) * 0.4)).astype(np.int16)
    frames = [tone if loud else np.zeros_like(tone) for ms, loud in parts for _ in range(ms // 20)]
    return np.concatenate(frames)


@pytest.mark.parametrize(
    ("parts", "from_ms", "silence"),
    [
        # Nobody spoke when the agent was lost.
        (((1000, True), (2000, False), (400, True)), 2000, 1000),
        # It was speaking, and the last 300 ms were played on, with a pause between two words.
        (((1000, True), (100, False), (160, True), (2000, False), (400, True)), 960, 2000),
        # It has been silent since.
        (((1000, True), (2000, False)), 900, None),
        (((1000, True),), 900, None),
    ],
)
def test_the_silence_that_is_heard(
    parts: tuple[tuple[int, bool], ...], from_ms: float, silence: float | None
) -> None:
    assert silence_ms(heard(*parts), from_ms) == silence


def test_a_call_that_did_not_go_on_fails_the_benchmark() -> None:
    found = Losses(silences={"killed": [800.0] * 50, "frozen": [3000.0] * 50})
    assert section(found).failures == []
    assert "silence p50" in section(found).notes[0]
    found.unheard.append("call_1 (killed)")
    assert section(found).failures == ["not taken over: call_1 (killed)"]
