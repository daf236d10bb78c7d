"""Whole recorded calls in which numbers are said that may not be kept, in words or in audio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from core.audio import Pcm
from core.models import AgentConfig, Turn, Word
from core.recordings.config import Recording, Redaction
from dev.providers import Control, Deepgram, OpenAI, Rule, Script
from dev.speech import CALLER_VOICE, synthesize
from dev.standins.socket import SocketFarEnd
from tests.support.alignment import channels
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from worker.privacy import silencer
from worker.recording.resample import RATE

pytestmark = [pytest.mark.providers, pytest.mark.asyncio(loop_scope="session")]

HALF = "four two four two four two four two"
BEFORE, AFTER = "my card number is", "and I would like to pay"
WHOLE = f"{BEFORE} {HALF} {HALF} {AFTER}"
FIRST, SECOND = f"{BEFORE} {HALF}", f"{HALF} {AFTER}"
REPEATED = f"I have written down {HALF} {HALF} as your card number."
CONTROL = Control(
    deepgram=Deepgram(phrases=[WHOLE, FIRST, SECOND]),
    openai=OpenAI(
        scripts={
            "default": Script(
                rules=[
                    Rule(keywords=["number", "pay"], reply=REPEATED),
                    Rule(keywords=["pay"], reply="Thank you."),
                ],
                default="Go on.",
            )
        }
    ),
)
AGENT = AgentConfig(
    name="Test",
    voice_mode="hosted",
    begin_message="Hello.",
    recording=Recording(enabled=True),
    redaction=Redaction(kinds=["card"], audio=True),
)

NEAR_MS = 120
"""The stand-in's words are located this exactly."""
LOUD = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker(folder: Path) -> AsyncIterator[StreamWorker]:
    async with StreamWorker.run(CONTROL.model_copy(deep=True), folder=folder) as running:
        yield running


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each turn be longer than the time after which its first words would be written."""
    monkeypatch.setattr(silencer, "LAG_MS", 2000)


async def hang_up(call: KeptCall, far: SocketFarEnd) -> None:
    await far.send("end")
    await call.event("agent.left")


def span(first: Word, last: Word) -> tuple[int, int]:
    """Return where the words are silent on the recording, in samples."""
    start, end = first.start_ms - silencer.MARGIN_MS, last.end_ms + silencer.MARGIN_MS
    return start * RATE // 1000, end * RATE // 1000


def silent(recorded: tuple[Pcm, Pcm], words: Sequence[Word], channel: int) -> None:
    """Check that the number is silent on both channels, and that the words around it are not."""
    (card,) = [word for word in words if word.text == "[card]"]
    begin, end = span(card, card)
    assert [int(np.abs(pcm[begin:end]).max()) for pcm in recorded] == [0, 0]
    others = [word for word in words if word is not card]
    assert {"number", "pay"} & {word.text.strip(".") for word in others}
    for word in others:
        start, stop = (ms * RATE // 1000 for ms in (word.start_ms, word.end_ms))
        piece = recorded[channel][start:stop]
        if stop <= begin or start >= end:
            assert np.abs(piece).max() > LOUD, word


def said(text: str) -> list[Word]:
    """Return when the words of a text are said, from its beginning."""
    return [
        Word(text=word.word, start_ms=round(word.start_ms), end_ms=round(word.end_ms))
        for word in synthesize(text, CALLER_VOICE, RATE).words
    ]


def placed(turn: Turn, text: str, digits: int) -> None:
    """Check that the number of a turn is where the caller has said it."""
    (card,) = [word for word in turn.words if word.text == "[card]"]
    words = said(text)
    first = next(number for number, word in enumerate(words) if word.text.lower() == "four")
    begin, end = words[first].start_ms, words[first + digits - 1].end_ms
    assert turn.start_ms is not None
    assert card.start_ms - turn.start_ms == pytest.approx(begin - words[0].start_ms, abs=NEAR_MS)
    assert card.end_ms - turn.start_ms == pytest.approx(end - words[0].start_ms, abs=NEAR_MS)


def nothing_of_it(call: KeptCall, folder: Path) -> None:
    """Check that two digits in a row are nowhere in what was written."""
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    for text in ("four two", "4242"):
        assert not [event for event in call.events if text in str(event.data)]
        assert not any(text.encode() in data for data in written if not data.startswith(b"RIFF"))


async def test_a_number_is_silent_where_it_is_said_and_repeated(
    worker: StreamWorker, folder: Path
) -> None:
    async with worker.session(AGENT, record=True) as (call, far):
        await far.say(WHOLE)
        await call.until(lambda told: told.turns[1:] and told.turns[1].response, "answer")
        await hang_up(call, far)
    turn = call.turns[1]
    assert turn.transcript == f"{BEFORE} [card] {AFTER}"
    assert turn.response == "I have written down [card] as your card number."
    recorded = channels(folder, call.id)
    silent(recorded, turn.words, 0)
    silent(recorded, turn.response_words, 1)
    placed(turn, WHOLE, 16)
    assert [event.data for event in call.of("redaction.applied")] == [{"counts": {"card": 2}}]
    nothing_of_it(call, folder)


async def test_a_number_in_two_turns_is_silent_in_both(worker: StreamWorker, folder: Path) -> None:
    async with worker.session(AGENT, record=True) as (call, far):
        await far.say(FIRST)
        await far.heard.until_sound(far.heard.ms)
        await far.heard.until_quiet(500)
        assert len(call.turns) == 1
        await far.say(SECOND)
        await call.until(lambda told: told.turns[2:] and told.turns[2].response, "answer")
        await hang_up(call, far)
    first, second = call.turns[1:]
    assert (first.transcript, second.transcript) == (f"{BEFORE} [card]", f"[card] {AFTER}")
    recorded = channels(folder, call.id)
    for turn, text in ((first, FIRST), (second, SECOND)):
        silent(recorded, turn.words, 0)
        placed(turn, text, 8)
    assert [event.data for event in call.of("redaction.applied")] == [{"counts": {"card": 1}}]
    nothing_of_it(call, folder)


async def test_words_that_are_not_understood_by_the_end_are_not_on_the_recording(
    worker: StreamWorker, folder: Path
) -> None:
    late = CONTROL.model_copy(deep=True)
    late.deepgram.interim_every_ms, late.deepgram.final_delay_ms = 0, 20_000
    await worker.providers.set_control(late)
    try:
        async with worker.session(AGENT, record=True) as (call, far):
            await far.heard.until_quiet(500)
            begin_ms = call.turns[0].response_end_ms
            await far.say(WHOLE)
            await hang_up(call, far)
    finally:
        await worker.providers.set_control(CONTROL.model_copy(deep=True))
    assert [turn.transcript for turn in call.turns] == [""]
    caller, agent = channels(folder, call.id)
    assert begin_ms is not None and len(caller) > (begin_ms + 5000) * RATE // 1000
    assert not caller.any() and np.abs(agent).max() > LOUD
