"""The report of the benchmarks: a section that is measured again takes its own place."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dev.bench import report
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
    measured = Section("One", "python -m dev.bench one", ("",), [], samples=samples)
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
