"""Beep detection on generated signals: a beep is found where there is one, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from core.audio import Pcm, ulaw_decode, ulaw_encode
from dev.speech import AGENT_VOICE, CALLER_VOICE, Voice, synthesize
from worker.machines.beep import Beep, BeepDetector

pytestmark = pytest.mark.unit

# ITU-T Q.23
DTMF = [(low, high) for low in (697, 770, 852, 941) for high in (1209, 1336, 1477, 1633)]
TEXTS = [
    "Hello, you have reached the office of Smith and Partners. Please leave a message.",
    "Oooh, who would choose blue shoes? You two do, too, in the moonlight.",
    "Mmm. Eee. Aaah. Oh no, no, no. We see three bees in the trees.",
    "One two three four five six seven eight nine zero.",
]


def tone(*frequencies: float, ms: float, rate: int = 8000, level: float = 0.3) -> Pcm:
    times = np.arange(int(rate * ms / 1000)) / rate
    signal = np.zeros(len(times))
    for frequency in frequencies:
        signal += np.sin(2 * np.pi * frequency * times)
    return (signal * level * 32767 / len(frequencies)).astype(np.int16)


def silence(ms: float, rate: int = 8000) -> Pcm:
    return np.zeros(int(rate * ms / 1000), np.int16)


def noise(ms: float, level: float, rate: int = 8000) -> Pcm:
    samples = np.random.default_rng(7).normal(0, level * 32767, int(rate * ms / 1000))
    return samples.astype(np.int16)


def found(*parts: Pcm, rate: int = 8000, piece_ms: int = 20) -> list[Beep]:
    """Return the beeps that a detector finds when it is fed in pieces, as audio arrives."""
    detector = BeepDetector(rate)
    signal = np.concatenate(parts)
    piece = rate * piece_ms // 1000
    return [
        beep
        for start in range(0, len(signal), piece)
        for beep in detector.feed(signal[start : start + piece])
    ]


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("frequency", [400, 425, 440, 500, 850, 1000, 1400, 2000])
def test_a_beep(frequency: float, rate: int) -> None:
    beeps = found(
        silence(300, rate), tone(frequency, ms=400, rate=rate), silence(300, rate), rate=rate
    )
    assert len(beeps) == 1
    assert beeps[0].frequency_hz == pytest.approx(frequency, abs=10)
    assert beeps[0].start_ms == pytest.approx(300, abs=30)
    assert beeps[0].end_ms == pytest.approx(700, abs=30)


@pytest.mark.parametrize("ms", [140, 200, 1000, 1500])
def test_of_every_length(ms: float) -> None:
    assert len(found(silence(100), tone(1000, ms=ms), silence(200))) == 1


@pytest.mark.parametrize("piece_ms", [10, 50, 333])
def test_fed_in_pieces_of_any_size(piece_ms: int) -> None:
    parts = (silence(105), tone(1000, ms=300), silence(300))
    assert found(*parts, piece_ms=piece_ms) == found(*parts)


def test_it_is_known_soon_after_its_end() -> None:
    assert found(tone(1000, ms=300), silence(40)) == []
    assert len(found(tone(1000, ms=300), silence(120))) == 1


def test_through_a_telephone_line() -> None:
    signal = np.concatenate([noise(400, 0.001), tone(1000, ms=300, level=0.1), silence(300)])
    line = signal + noise(1000, 0.001)
    (beep,) = found(ulaw_decode(ulaw_encode(line.astype(np.int16))))
    assert beep.frequency_hz == pytest.approx(1000, abs=10)


def test_after_an_announcement() -> None:
    words = synthesize("Please leave a message after the tone.", AGENT_VOICE, 8000).pcm
    (beep,) = found(words, silence(400), tone(1000, ms=300), silence(400))
    assert beep.start_ms == pytest.approx(len(words) / 8 + 400, abs=30)


def test_a_lost_packet_does_not_hide_it() -> None:
    parts = (tone(1000, ms=200), silence(20), tone(1000, ms=200), silence(200))
    assert len(found(*parts)) == 1


def test_of_two_tones_the_last_counts() -> None:
    (beep,) = found(tone(800, ms=200), tone(1200, ms=200), silence(200))
    assert beep.frequency_hz == pytest.approx(1200, abs=10)


@pytest.mark.parametrize("keys", DTMF)
def test_keypad_tones_are_none(keys: tuple[float, float]) -> None:
    assert found(silence(100), tone(*keys, ms=300), silence(300)) == []


@pytest.mark.parametrize("chord", [(440, 554, 659), (523, 659, 784), (440, 480), (350, 440)])
def test_chords_and_two_tone_signals_are_none(chord: tuple[float, ...]) -> None:
    assert found(silence(100), tone(*chord, ms=500), silence(300)) == []


def test_a_melody_is_none() -> None:
    notes = [tone(note, ms=80) for note in (523, 587, 659, 698, 784, 880, 988, 1047) * 3]
    assert found(*notes, silence(300)) == []


def test_a_tone_that_goes_on_is_none() -> None:
    assert found(tone(425, ms=5000)) == []
    assert found(tone(2100, ms=3300), silence(300)) == []  # V.25


@pytest.mark.parametrize("short", [20, 40, 60])
def test_clicks_are_none(short: float) -> None:
    assert found(silence(100), tone(1000, ms=short), silence(300)) == []


@pytest.mark.parametrize("frequency", [60, 200, 300, 2600, 3400])
def test_hum_and_whistling_are_none(frequency: float) -> None:
    assert found(silence(100), tone(frequency, ms=400), silence(300)) == []


def test_a_tone_under_words_is_none() -> None:
    words = synthesize(TEXTS[0], AGENT_VOICE, 8000).pcm
    hum = tone(1000, ms=len(words) / 8, level=0.02)
    assert found((words // 2 + hum[: len(words)]).astype(np.int16)) == []


def test_silence_and_noise_are_none() -> None:
    assert found(silence(2000)) == []
    assert found(*[part for _ in range(5) for part in (noise(400, 0.1), silence(300))]) == []
    assert found(noise(1000, 0.0005), noise(400, 0.2), noise(1000, 0.0005)) == []


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize(
    "voice",
    [AGENT_VOICE, CALLER_VOICE, Voice("en-us+f4", pitch=99), Voice("de", 120), Voice("fr", 200)],
    ids=lambda voice: f"{voice.name}-{voice.pitch}",
)
def test_speech_is_none(voice: Voice, rate: int) -> None:
    for text in TEXTS:
        assert found(synthesize(text, voice, rate).pcm, silence(400, rate), rate=rate) == []
