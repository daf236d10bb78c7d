"""The offline synthesiser and recogniser, on audio as telephone calls carry it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import pytest_asyncio

from core.audio import Pcm, ulaw_decode, ulaw_encode
from dev.speech import (
    AGENT_VOICE,
    CALLER_VOICE,
    Recognizer,
    RecognizerPool,
    SpeechError,
    Voice,
    normalize,
    synthesize,
)
from dev.speech.sphinx import _arpabet
from dev.speech.text import cardinal

pytestmark = pytest.mark.providers

CALLER = [
    "Hello, who is this?",
    "I would like to book a table for two people.",
    "What time do you open tomorrow?",
    "Yes, please.",
    "My name is Alice Johnson.",
    "At seven thirty in the evening.",
    "Could you repeat that, please?",
    "Wait, stop, that is not what I asked.",
    "The order number is 4521.",
    "No, thank you, goodbye.",
]
AGENT = [
    "Thanks for calling Switchroom, how can I help you today?",
    "Sure, I can book that for you.",
    "We open at nine in the morning tomorrow.",
    "Your table is booked for two people at seven thirty.",
    "Is there anything else I can help you with?",
    "Please press one to confirm or two to cancel.",
    "The weather in Paris is sunny with twenty two degrees.",
    "The total is $42.50.",
    "Goodbye, and have a nice day.",
]
STRANGERS = [
    "The quick brown fox jumps over the lazy dog.",
    "Elephants never forget their way home.",
    "My grandfather built this wooden boat.",
    "Seventeen green bottles hanging on the wall.",
]


def telephone(pcm: Pcm) -> Pcm:
    """Return the audio as a µ-law line delivers it, with silence around it."""
    silence = np.zeros(800, np.int16)
    return ulaw_decode(ulaw_encode(np.concatenate([silence, pcm, silence])))


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer([*CALLER, *AGENT])


# --- text


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Hello -- who\N{RIGHT SINGLE QUOTATION MARK}s THERE?!", "hello who's there"),
        ("Room 42, 3rd floor", "room forty two third floor"),
        ("20th, 12th, 21st", "twentieth twelfth twenty first"),
        (
            "$3.50 and $1.01 and £1",
            "three dollars fifty cents and one dollar one cent and one pound",
        ),
        ("12:30 or 7:05 or 9:00", "twelve thirty or seven oh five or nine o'clock"),
        ("1,204 of 4521", "one thousand two hundred four of four thousand five hundred twenty one"),
        ("call 5551234 or 007", "call five five five one two three four or zero zero seven"),
        ("3.14 is 50%", "three point one four is fifty percent"),
        ("rock-and-roll & blues", "rock and roll and blues"),
        ("…", ""),
    ],
)
def test_text_is_normalized_to_what_is_said(written: str, said: str) -> None:
    assert normalize(written) == said


def test_normalizing_twice_changes_nothing() -> None:
    for phrase in [*CALLER, *AGENT]:
        assert normalize(normalize(phrase)) == normalize(phrase)


def test_large_numbers() -> None:
    assert cardinal(0) == "zero"
    assert cardinal(1_000_015) == "one million fifteen"
    assert cardinal(2_300_000_000) == "two billion three hundred million"


# --- voice


def test_speech_has_the_rate_asked_for() -> None:
    slow = synthesize("How can I help you?", AGENT_VOICE, 8000)
    fast = synthesize("How can I help you?", AGENT_VOICE, 24000)
    assert slow.pcm.dtype == np.int16 and slow.sample_rate == 8000
    assert len(fast.pcm) == pytest.approx(3 * len(slow.pcm), abs=3)
    assert fast.duration_ms == pytest.approx(slow.duration_ms, abs=1)


def test_words_lie_where_they_sound() -> None:
    speech = synthesize("One – two, 3 (four)?", AGENT_VOICE, 16000)
    assert [word.word for word in speech.words] == ["One", "two,", "3", "(four)?"]
    for word, following in zip(speech.words, [*speech.words[1:], None], strict=True):
        part = speech.pcm[int(word.start_ms * 16) : int(word.end_ms * 16)]
        assert np.abs(part.astype(np.int32)).max() > 3000
        limit = following.start_ms if following else speech.duration_ms
        assert word.start_ms < word.end_ms <= limit
        pause = speech.pcm[int(word.end_ms * 16) + 8 : int(limit * 16) - 8]
        assert not len(pause) or np.abs(pause.astype(np.int32)).max() < 600
    # The comma is heard as a pause.
    assert speech.words[2].start_ms - speech.words[1].end_ms > 100


def test_a_word_cut_out_of_a_sentence_is_that_word() -> None:
    speech = synthesize("please transfer the money tomorrow", AGENT_VOICE, 16000)
    word = next(word for word in speech.words if word.word == "tomorrow")
    cut = speech.pcm[int(word.start_ms * 16) : int(word.end_ms * 16)]
    heard = Recognizer(["please", "transfer", "money", "tomorrow"]).recognize(cut, 16000)
    assert heard.text == "tomorrow"


def test_voices_differ_and_text_without_words_is_silent() -> None:
    low, high = (synthesize("Hello there", Voice("en-us", pitch=p), 8000) for p in (20, 80))
    assert not np.array_equal(low.pcm, high.pcm)
    assert len(synthesize(" … ", AGENT_VOICE, 8000).pcm) == 0


def test_an_unknown_voice_is_an_error() -> None:
    with pytest.raises(SpeechError, match="no voice 'xx-none'"):
        synthesize("Hello", "xx-none", 8000)


def test_threads_do_not_mix_their_speech() -> None:
    texts = [f"This is sentence number {number}" for number in range(12)]
    alone = [len(synthesize(text, AGENT_VOICE, 8000).pcm) for text in texts]
    voice = Voice(AGENT_VOICE.name, pitch=AGENT_VOICE.pitch + 1)
    with ThreadPoolExecutor(8) as threads:
        other = list(threads.map(lambda text: synthesize(text, voice, 8000), texts))
        again = list(threads.map(lambda text: synthesize(text + " ", AGENT_VOICE, 8000), texts))
    # The synthesiser keeps some state of the sentence before: its phase.
    assert [len(speech.pcm) for speech in again] == pytest.approx(alone, rel=0.02)
    for text, speech in zip(texts, other, strict=True):
        assert [word.word for word in speech.words] == text.split()


# --- ear


@pytest.mark.parametrize("voice", [AGENT_VOICE, CALLER_VOICE], ids=lambda voice: voice.name)
def test_phrases_are_recognised_off_a_telephone_line(recognizer: Recognizer, voice: Voice) -> None:
    for phrase in [*CALLER, *AGENT]:
        heard = recognizer.recognize(telephone(synthesize(phrase, voice, 8000).pcm), 8000)
        assert normalize(heard.text) == normalize(phrase)
        assert " ".join(word.word for word in heard.words) == normalize(phrase)
        assert 0.5 <= heard.confidence <= 1


@pytest.mark.parametrize("voice", [AGENT_VOICE, CALLER_VOICE], ids=lambda voice: voice.name)
def test_other_sentences_are_not_taken_for_a_phrase(recognizer: Recognizer, voice: Voice) -> None:
    for sentence in STRANGERS:
        heard = recognizer.recognize(telephone(synthesize(sentence, voice, 8000).pcm), 8000)
        assert heard.text == "" and heard.words == ()


def test_noise_tone_and_silence_are_nothing(recognizer: Recognizer) -> None:
    noise = np.random.default_rng(1).normal(0, 3000, 16000).astype(np.int16)
    tone = (8000 * np.sin(2 * np.pi * 440 / 8000 * np.arange(16000))).astype(np.int16)
    for pcm in (noise, tone, np.zeros(16000, np.int16), np.zeros(0, np.int16)):
        assert recognizer.recognize(pcm, 8000).text == ""


def test_quiet_and_loud_speech_are_heard_alike(recognizer: Recognizer) -> None:
    pcm = synthesize(CALLER[1], CALLER_VOICE, 8000).pcm
    for gain in (0.02, 1.2):
        scaled = np.clip(pcm * gain, -32768, 32767).astype(np.int16)
        assert recognizer.recognize(telephone(scaled), 8000).text == CALLER[1]


def test_words_are_placed_in_the_audio(recognizer: Recognizer) -> None:
    speech = synthesize(CALLER[1], AGENT_VOICE, 16000)
    heard = recognizer.recognize(speech.pcm, 16000)
    assert len(heard.words) == len(speech.words)
    for found, true in zip(heard.words, speech.words, strict=True):
        assert found.start_ms == pytest.approx(true.start_ms, abs=120)
        assert found.end_ms == pytest.approx(true.end_ms, abs=120)


def test_clauses_and_sequences_of_phrases_are_heard(recognizer: Recognizer) -> None:
    clause = synthesize("Thanks for calling Switchroom", AGENT_VOICE, 8000).pcm
    assert recognizer.recognize(telephone(clause), 8000).text == "Thanks for calling Switchroom,"
    both = np.concatenate([synthesize(text, AGENT_VOICE, 8000).pcm for text in AGENT[1:3]])
    assert recognizer.recognize(telephone(both), 8000).text == " ".join(AGENT[1:3])


def test_a_partial_result_is_the_beginning_of_the_phrase(recognizer: Recognizer) -> None:
    speech = synthesize(CALLER[1], CALLER_VOICE, 8000)
    until = next(word.end_ms for word in speech.words if word.word == "table")
    heard = recognizer.recognize(telephone(speech.pcm[: int(until * 8)]), 8000, partial=True)
    assert heard.text and normalize(CALLER[1]).startswith(heard.text)
    assert "book" in heard.text


def test_only_the_phrases_of_now_are_expected() -> None:
    recognizer = Recognizer(["Good morning."])
    pcm = synthesize("What is the weather like?", AGENT_VOICE, 8000).pcm
    assert recognizer.recognize(pcm, 8000).text == ""
    recognizer.expect(["What is the weather like?"])
    assert recognizer.recognize(pcm, 8000).text == "What is the weather like?"
    recognizer.expect([])
    assert recognizer.recognize(pcm, 8000).text == ""


def test_words_outside_the_dictionary_get_a_pronunciation() -> None:
    assert _arpabet("switchroom") == ("S", "W", "IH", "CH", "R", "UW", "M")
    recognizer = Recognizer(["Welcome to Zorblax.", "Welcome to Flimnoodle."])
    for phrase in ("Welcome to Zorblax.", "Welcome to Flimnoodle."):
        heard = recognizer.recognize(synthesize(phrase, AGENT_VOICE, 8000).pcm, 8000)
        assert heard.text == phrase


# --- pool


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def pool() -> AsyncIterator[RecognizerPool]:
    async with RecognizerPool(CALLER, processes=2) as running:
        yield running


@pytest.mark.asyncio(loop_scope="session")
async def test_the_pool_hears_several_at_once(pool: RecognizerPool) -> None:
    speeches = [synthesize(phrase, CALLER_VOICE, 8000).pcm for phrase in CALLER[:6]]
    heard = await asyncio.gather(*(pool.recognize(telephone(pcm), 8000) for pcm in speeches))
    assert [recognition.text for recognition in heard] == CALLER[:6]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_cancelled_recognition_gives_its_process_back(pool: RecognizerPool) -> None:
    pcm = telephone(synthesize(CALLER[1], CALLER_VOICE, 8000).pcm)
    for _ in range(6):
        task = asyncio.create_task(pool.recognize(pcm, 8000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(20):
        assert (await pool.recognize(pcm, 8000)).text == CALLER[1]


@pytest.mark.asyncio(loop_scope="session")
async def test_partial_results_leave_a_process_for_final_ones(pool: RecognizerPool) -> None:
    pcm = telephone(synthesize(CALLER[1], CALLER_VOICE, 8000).pcm)
    final = asyncio.create_task(pool.recognize(pcm, 8000))
    await asyncio.sleep(0)
    assert await pool.recognize_if_idle(pcm, 8000) is None
    assert (await final).text == CALLER[1]


async def test_a_process_that_died_is_replaced() -> None:
    async with RecognizerPool(CALLER, processes=1) as pool:
        pcm = telephone(synthesize(CALLER[1], CALLER_VOICE, 8000).pcm)
        (executor,) = pool._all
        (process,) = executor._processes.values()
        process.kill()
        async with asyncio.timeout(30):
            with pytest.raises(BrokenExecutor):
                await pool.recognize(pcm, 8000)
            assert (await pool.recognize(pcm, 8000)).text == CALLER[1]
