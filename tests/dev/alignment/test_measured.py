"""dev.alignment on recordings and transcripts whose errors are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from core.audio import Pcm
from core.models import Turn, Word
from dev.alignment.conversation import ANSWER, QUESTION, SPOKEN
from dev.alignment.far_ends import FarSide
from dev.alignment.measured import Alignment, measure
from dev.alignment.offsets import FAR_RATE
from dev.speech import AGENT_VOICE, CALLER_VOICE, Voice, synthesize
from dev.speech.listen import Segment, speech_bounds
from worker.recording.resample import RATE, Resampler

pytestmark = pytest.mark.unit

SAID_MS, HEARD_MS, LENGTH_MS = 1000, 4000, 12_000
DRY_AT_MS, DRY_MS = 2000, 260
ORIGIN_MS = 40
"""The call's clock is this much ahead of the far end's."""


@dataclass
class Track:
    """What one side has said, at FAR_RATE."""

    pcm: Pcm = field(default_factory=lambda: np.zeros(LENGTH_MS * FAR_RATE // 1000, np.int16))

    def put(self, at_ms: float, part: Pcm) -> None:
        first = round(at_ms * FAR_RATE / 1000)
        self.pcm[first : first + len(part)] = part

    def recorded(self, late_ms: float) -> Pcm:
        resampler = Resampler(FAR_RATE)
        pcm = np.concatenate((resampler.push(self.pcm), resampler.flush()))
        late = round(late_ms * RATE / 1000)
        return np.concatenate((np.zeros(late, np.int16), pcm))


def words(
    text: str, voice: Voice, at_ms: float, dry: bool = False
) -> tuple[float, float, list[Word]]:
    """Return the bounds of a text's voice, and its words, when it is said at ``at_ms``."""
    speech = synthesize(text, voice, FAR_RATE)
    bounds = speech_bounds(speech.pcm, FAR_RATE)
    assert bounds is not None

    def moved(ms: float, *, end: bool) -> int:
        after = ms > DRY_AT_MS if end else ms >= DRY_AT_MS
        return round(at_ms + ms + (DRY_MS if dry and after else 0))

    located = [
        Word(
            text=word.word,
            start_ms=moved(word.start_ms, end=False),
            end_ms=moved(word.end_ms, end=True),
        )
        for word in speech.words
    ]
    begin, end = moved(bounds.start_ms, end=False), moved(bounds.end_ms, end=True)
    return begin, end, located


def measured(
    *, caller_ms: float = 0.0, agent_ms: float = 0.0, turns_ms: int = 0, words_ms: int = 0
) -> Alignment:
    """Measure a conversation whose channels and times are late by so much."""
    said, heard = Track(), Track()
    said.put(SAID_MS, synthesize(QUESTION, CALLER_VOICE, FAR_RATE).pcm)
    answer = synthesize(ANSWER, AGENT_VOICE, FAR_RATE).pcm
    cut = DRY_AT_MS * FAR_RATE // 1000
    heard.put(HEARD_MS, answer[:cut])
    heard.put(HEARD_MS + DRY_AT_MS + DRY_MS, answer[cut:])
    turns = []
    for text, voice, at_ms in ((QUESTION, CALLER_VOICE, SAID_MS), (ANSWER, AGENT_VOICE, HEARD_MS)):
        begin, end, located = words(text, voice, at_ms + ORIGIN_MS, dry=voice is AGENT_VOICE)
        times = [
            word.model_copy(
                update={"start_ms": word.start_ms + words_ms, "end_ms": word.end_ms + words_ms}
            )
            for word in located
        ]
        begin, end = round(begin) + turns_ms, round(end) + turns_ms
        turns.append(
            Turn(id="a", transcript=text, start_ms=begin, end_ms=end, words=times)
            if voice is CALLER_VOICE
            else Turn(
                id="b",
                response=text,
                response_start_ms=begin,
                response_end_ms=end,
                response_words=times,
            )
        )
    recorded = said.recorded(ORIGIN_MS + caller_ms), heard.recorded(ORIGIN_MS + agent_ms)
    return measure(recorded, FarSide(said.pcm, heard.pcm, [QUESTION]), turns, SPOKEN)


def test_what_lines_up_misses_nothing() -> None:
    found = measured()
    assert max(found.caller.off_ms) < 0.1 and max(found.agent.off_ms) < 0.1
    assert found.caller.drift_ms < 0.1
    assert len(found.transcript.boundaries) == 4
    assert max(map(abs, found.transcript.boundaries)) <= 20, "a frame"
    # Words on both sides of the dry stretch are found.
    assert len(found.transcript.words) == 2 * (len(QUESTION.split()) + len(ANSWER.split()))
    assert max(map(abs, found.transcript.words)) <= 25
    assert found.missed() == []


def test_channels_that_are_apart() -> None:
    found = measured(caller_ms=-15, agent_ms=15)
    assert found.caller.off_ms == pytest.approx([15] * len(found.caller.offsets), abs=0.1)
    assert found.missed() == []
    assert measured(caller_ms=-25, agent_ms=25).missed()[:2] == [
        "offset of the caller, p95 25 > 20 ms",
        "offset of the agent, p95 25 > 20 ms",
    ]


def test_a_hold_is_silence_on_both_channels() -> None:
    said = Track()
    said.put(SAID_MS, synthesize(QUESTION, CALLER_VOICE, FAR_RATE).pcm)
    recorded = said.recorded(0)
    begin, end, located = words(QUESTION, CALLER_VOICE, SAID_MS)
    turn = Turn(
        id="a", transcript=QUESTION, start_ms=round(begin), end_ms=round(end), words=located
    )
    holds = [Segment(end + 200, end + 2000), Segment(begin - 500, end + 300)]
    far = FarSide(said.pcm, said.pcm, [QUESTION], holds=holds)
    found = measure((recorded, recorded), far, [turn], SPOKEN)
    assert found.held[0] == 0
    assert found.held[1] > (end - begin) / 2
    assert found.missed()[-1].endswith("of a hold are not silent")


def test_a_transcript_that_is_late() -> None:
    late = measured(turns_ms=130, words_ms=90).missed()
    assert [each.partition(",")[0] for each in late] == ["boundaries of turns"] * 2 + ["words"]


def test_what_only_one_of_both_has() -> None:
    said = Track()
    said.put(SAID_MS, synthesize(QUESTION, CALLER_VOICE, FAR_RATE).pcm)
    far = FarSide(said.pcm, said.pcm, [QUESTION])
    begin, end, located = words(QUESTION, CALLER_VOICE, SAID_MS)
    turn = Turn(id="a", transcript=QUESTION, start_ms=round(begin), end_ms=round(end))
    recorded = said.recorded(0), said.recorded(0)
    found = measure(recorded, far, [turn], SPOKEN).transcript
    assert found.unmatched == [f"the words of {QUESTION!r}", f"{begin:.0f} to {end:.0f} ms"]
    elsewhere = turn.model_copy(update={"start_ms": 9000, "end_ms": 9500, "words": located})
    assert measure(recorded, far, [elsewhere], SPOKEN).transcript.unmatched[0] == QUESTION
