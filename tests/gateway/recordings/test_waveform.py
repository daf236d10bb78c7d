"""Levels and picture of a recording."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import numpy as np
import pytest

from core.models import Turn
from gateway.recordings.audio import Peaks, Undecodable, peaks_of
from gateway.recordings.waveform import waveform
from tests.support.recordings import AUDIO, RATE, tone, wav

pytestmark = pytest.mark.unit

SVG = "{http://www.w3.org/2000/svg}"
PEAKS = Peaks(2000, 2.5, [0.5] * 400 + [0.0] * 400, [0.0] * 400 + [0.25] * 400)


def turn(**changes: object) -> Turn:
    return Turn.model_validate({"id": "t1", **changes})


def rects(svg: str) -> list[tuple[str, float, float]]:
    found = ElementTree.fromstring(svg).iter(f"{SVG}rect")
    return [
        (rect.get("class", ""), float(rect.get("x", "")), float(rect.get("width", "")))
        for rect in found
        if "turn" in rect.get("class", "")
    ]


class TestPeaks:
    def test_each_channel_has_its_own(self) -> None:
        peaks = peaks_of(io.BytesIO(AUDIO), "wav", 4, 2000)
        assert peaks == Peaks(2000, 500, [0.5, 0.5, 0, 0], [0, 0, 0.25, 0.25])

    def test_a_click_is_in_its_window(self) -> None:
        silent = np.zeros(RATE, np.int16)
        clicked = silent.copy()
        clicked[RATE // 2 + 1] = -32_768
        peaks = peaks_of(io.BytesIO(wav(clicked, silent)), "wav", 10, 1000)
        assert peaks.caller == [0] * 5 + [1.0] + [0] * 4

    def test_more_windows_than_samples(self) -> None:
        peaks = peaks_of(io.BytesIO(wav(tone(0.01), tone(0.01))), "wav", 4000, 10)
        assert len(peaks.caller) == 4000
        assert max(peaks.caller) == pytest.approx(0.5, abs=0.01)

    @pytest.mark.parametrize("duration_ms", [0, 1, 500])
    def test_a_duration_that_is_wrong(self, duration_ms: int) -> None:
        assert len(peaks_of(io.BytesIO(AUDIO), "wav", 10, duration_ms).caller) == 10

    @pytest.mark.attack
    @pytest.mark.parametrize("junk", [b"", b"RIFF", b"junk" * 1000, b"#EXTM3U\nfile:///etc/passwd"])
    def test_other_content_is_refused(self, junk: bytes) -> None:
        with pytest.raises(Undecodable):
            peaks_of(io.BytesIO(junk), "wav", 10, 1000)

    @pytest.mark.attack
    def test_its_format_is_not_guessed(self) -> None:
        with pytest.raises(Undecodable):
            peaks_of(io.BytesIO(AUDIO), "ogg", 10, 1000)


class TestPicture:
    def test_turns_are_where_they_were_spoken(self) -> None:
        spoken = turn(start_ms=500, end_ms=1000, response_start_ms=1500, response_end_ms=9000)
        assert rects(waveform(PEAKS, [spoken])) == [
            ("turn caller", 200, 200),
            ("turn agent", 600, 200),
        ]

    def test_a_turn_without_times_or_after_the_end_is_not_marked(self) -> None:
        late = turn(start_ms=3000, end_ms=4000)
        assert rects(waveform(PEAKS, [turn(transcript="Hi"), late])) == []

    def test_words_are_tooltips_and_masked_ones_are_not_said(self) -> None:
        times = {"start_ms": 0, "end_ms": 500}
        svg = waveform(
            PEAKS, [turn(transcript="Hello", **times), turn(masked=True, transcript="x9x", **times)]
        )
        titles = [title.text for title in ElementTree.fromstring(svg).iter(f"{SVG}title")]
        assert titles == ["0:00 Hello", "0:00 (masked)"]

    @pytest.mark.attack
    def test_words_stay_words(self) -> None:
        words = "</title><script>alert(1)</script>&\"'\x00\x1b\ud800"
        svg = waveform(PEAKS, [turn(start_ms=0, end_ms=500, transcript=words)])
        root = ElementTree.fromstring(svg)
        assert not list(root.iter(f"{SVG}script"))
        (title,) = root.iter(f"{SVG}title")
        assert title.text == "0:00 </title><script>alert(1)</script>&\"'" + "\ufffd" * 3

    @pytest.mark.parametrize("duration_ms", [0, 1, 61_000, 3_600_000, 86_400_000])
    def test_the_axis_is_readable(self, duration_ms: int) -> None:
        svg = waveform(Peaks(duration_ms, 1, [0.1] * 800, [0.1] * 800), [])
        texts = [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
        assert 3 <= len(texts) <= 13
