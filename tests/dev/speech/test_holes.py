"""Holes in known speech are found at their length, and nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest

from core.audio import Pcm
from dev.speech import AGENT_VOICE, synthesize
from dev.speech.holes import longest_hole_ms
from dev.speech.listen import speech_bounds

pytestmark = pytest.mark.providers

RATE = 8000
MS = RATE // 1000
AT = (300, 1000, 1700)


@pytest.fixture(scope="module")
def spoken() -> Pcm:
    """Speech with natural pauses."""
    pcm = synthesize("On Sunday we open from nine until late at night.", AGENT_VOICE, RATE).pcm
    bounds = speech_bounds(pcm, RATE)
    assert bounds is not None
    return pcm[int(bounds.start_ms) * MS : int(bounds.end_ms) * MS]


def as_heard(pcm: Pcm) -> Pcm:
    """Return the audio as a line delivers it: softer, with noise, and silence after it."""
    line = np.concatenate([pcm, np.zeros(RATE, np.int16)])
    noise = np.random.default_rng(1).normal(0, 30, len(line))
    return (0.7 * line + noise).clip(-32768, 32767).astype(np.int16)


def hole_ms(pcm: Pcm, spoken: Pcm) -> float:
    return longest_hole_ms(as_heard(pcm), spoken, RATE)


def test_speech_that_came_whole_has_none(spoken: Pcm) -> None:
    assert hole_ms(spoken, spoken) < 20


@pytest.mark.parametrize("length_ms", [80, 200, 500])
@pytest.mark.parametrize("at_ms", AT)
def test_silence_put_in_is_a_hole(spoken: Pcm, at_ms: int, length_ms: int) -> None:
    gap = np.zeros(length_ms * MS, np.int16)
    held_up = np.concatenate([spoken[: at_ms * MS], gap, spoken[at_ms * MS :]])
    assert hole_ms(held_up, spoken) == pytest.approx(length_ms, abs=20)


@pytest.mark.parametrize("at_ms", AT)
def test_filler_put_in_is_a_hole(spoken: Pcm, at_ms: int) -> None:
    here = at_ms * MS
    held_up = np.concatenate([spoken[:here], spoken[here - 100 * MS : here], spoken[here:]])
    assert hole_ms(held_up, spoken) == pytest.approx(100, abs=20)


@pytest.mark.parametrize("at_ms", AT)
def test_what_is_missing_is_a_hole(spoken: Pcm, at_ms: int) -> None:
    cut = np.concatenate([spoken[: at_ms * MS], spoken[(at_ms + 200) * MS :]])
    assert hole_ms(cut, spoken) == pytest.approx(200, abs=20)


@pytest.mark.parametrize("at_ms", AT)
def test_what_became_silence_is_a_hole(spoken: Pcm, at_ms: int) -> None:
    blank = spoken.copy()
    blank[at_ms * MS : (at_ms + 400) * MS] = 0
    assert 300 < hole_ms(blank, spoken) <= 420


def test_an_end_that_never_came_is_a_hole(spoken: Pcm) -> None:
    assert hole_ms(spoken[: -1000 * MS], spoken) == pytest.approx(1000, abs=100)


def test_small_jumps_of_a_jitter_buffer_do_not_add_up(spoken: Pcm) -> None:
    pieces = np.array_split(spoken, 12)
    stretched = np.concatenate([part for piece in pieces for part in (piece, piece[-10 * MS :])])
    assert hole_ms(stretched, spoken) <= 40


def test_another_speech_is_one_hole(spoken: Pcm) -> None:
    other = synthesize("Goodbye.", AGENT_VOICE, RATE).pcm
    assert hole_ms(other, spoken) == 1000 * len(spoken) / RATE
    assert longest_hole_ms(np.zeros(0, np.int16), spoken, RATE) == 1000 * len(spoken) / RATE
