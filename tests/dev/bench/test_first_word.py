"""A clipped first word is told from a whole one, despite a telephone line's noise."""

import numpy as np
import pytest

from core.audio import Pcm, ulaw_decode, ulaw_encode
from dev.bench.first_word import FirstWord
from dev.speech import AGENT_VOICE, CALLER_VOICE, synthesize

pytestmark = pytest.mark.unit

RATE = 8000
GREETING = "Hello, how can I help you?"
WORD = FirstWord(GREETING)


def silence(ms: float) -> Pcm:
    return np.zeros(int(ms * RATE / 1000), np.int16)


def greeting(*, from_ms: float = 0) -> Pcm:
    return synthesize(GREETING, AGENT_VOICE, RATE).pcm[int(from_ms * RATE / 1000) :]


def line(*parts: Pcm) -> Pcm:
    """Return the audio as a phone hears it: G.711, at another level, with some noise."""
    signal = np.concatenate(parts) * 0.5
    noise = np.random.default_rng(1).normal(0, 30, len(signal))
    return ulaw_decode(ulaw_encode((signal + noise).astype(np.int16)))


def whole(received: Pcm) -> bool:
    found = WORD.find(received)
    return found is not None and found.whole


@pytest.mark.parametrize("lead_ms", [0, 3, 200])
def test_a_greeting_heard_from_its_beginning(lead_ms: float) -> None:
    assert whole(line(silence(lead_ms), greeting()))


@pytest.mark.parametrize("lead_ms", [0, 200])
@pytest.mark.parametrize("lost_ms", [80, 150, 300, 600])
def test_a_greeting_whose_beginning_is_missing(lead_ms: float, lost_ms: float) -> None:
    assert not whole(line(silence(lead_ms), greeting(from_ms=lost_ms)))


def test_a_gap_in_the_word() -> None:
    clipped = greeting().copy()
    clipped[100 * 8 : 350 * 8] = 0
    assert not whole(line(silence(100), clipped))


def test_something_else_said_before() -> None:
    other = synthesize("Well.", AGENT_VOICE, RATE).pcm
    assert not whole(line(other, silence(200), greeting()))


def test_another_greeting_and_another_voice() -> None:
    assert not whole(line(synthesize("Good day.", AGENT_VOICE, RATE).pcm, silence(500)))
    assert not whole(line(synthesize(GREETING, CALLER_VOICE, RATE).pcm))


def test_silence_has_no_word() -> None:
    assert WORD.find(silence(1000)) is None
