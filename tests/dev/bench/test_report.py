"""The report of the benchmarks: a section that is measured again is replaced in its place."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dev.bench import breakdown, report
from dev.bench.report import Section

pytestmark = pytest.mark.unit


def section(title: str, value: str) -> Section:
    return Section(title, "run it", ("", "p50"), [("a", value)], notes=["as it was"])


def test_a_section_is_replaced_where_it_stands() -> None:
    first, second = (section(name, "1 ms").markdown("a day") for name in ("One", "Two"))
    whole = report.document(report.merged("", [first, second]))
    again = section("One", "2 ms").markdown("another day")
    sections = report.merged(whole, [again])
    assert sections == [again, second]
    assert report.merged(report.document(sections), []) == sections


def test_a_new_section_comes_last() -> None:
    one, two = (section(name, "1 ms").markdown("a day") for name in ("One", "Two"))
    assert report.merged(report.document([one]), [two]) == [one, two]


def test_samples_are_kept_and_shown(tmp_path: Path) -> None:
    samples = {"ours": [3.0, 1.0, 2.0], "a peer": [4.0, 5.5]}
    command = "python -m dev.bench one --minutes 5"
    measured = Section("One", command, ("",), [], samples=samples)
    for _ in range(2):
        measured.save(tmp_path, "a day")
        kept = json.loads((tmp_path / "one.json").read_text())
        assert kept["samples"] == samples and kept["on"] == "a day" and kept["versions"]
        picture = (tmp_path / "one.svg").read_bytes()
        assert {"One", "ours", "a peer"} <= {e.text for e in ElementTree.fromstring(picture).iter()}
    assert "benchmarks/one.svg" in measured.markdown("a day")


def test_what_has_no_samples_has_no_files(tmp_path: Path) -> None:
    section("One", "1 ms").save(tmp_path, "a day")
    assert list(tmp_path.iterdir()) == []


def turn(said: str, **latency: float) -> dict[str, object]:
    return {"transcript": said, "latency": latency}


def test_a_record_is_checked_turn_by_turn() -> None:
    record = {
        "transcripts": [
            turn(""),
            turn("When?", endpointing=300, stt=0, llm=200, tts=100, transport=70, total=670),
            turn("Why?", endpointing=1, stt=0, llm=0, tts=0, total=1),
            turn("When?"),
            turn("When?", endpointing=320, stt=0, llm=180, tts=110, transport=80, total=690),
        ]
    }
    checked = breakdown.check(record, "When?", [740.0, 800.0, 720.0])
    assert [one.unseen_ms for one in checked] == [70.0, 30.0]
    where, unseen = breakdown.notes(checked, of=3)
    assert "2 of 3 turns" in where
    assert "endpointing 310 + STT 0 + LLM 190 + TTS 105 + transport 75 = 680" in where
    assert "totals: 680); on the wire 730" in where
    assert "+50 ms (median; p5 +30, p95 +70)" in unseen
    assert breakdown.check(record, "When?", [740.0, 720.0]) == []


def test_records_without_latencies_are_told() -> None:
    assert breakdown.notes([], of=3) == ["None of the 3 turns has a whole latency on record."]
