"""The report of the benchmarks: a section that is measured again takes its own place."""

from __future__ import annotations

import pytest

from dev.bench import report
from dev.bench.report import Section

pytestmark = pytest.mark.unit


def section(title: str, value: str) -> Section:
    return Section(title, "run it", ("", "p50"), [("a", value)], notes=["as it was"])


def test_a_section_is_replaced_where_it_stands() -> None:
    first, second = (section(name, "1 ms").markdown("a day") for name in ("One", "Two"))
    whole = report.document(report.merged("", [first, second]), "1.0")
    again = section("One", "2 ms").markdown("another day")
    sections = report.merged(whole, [again])
    assert sections == [again, second]
    assert report.merged(report.document(sections, "1.0"), []) == sections


def test_a_new_section_comes_last() -> None:
    one, two = (section(name, "1 ms").markdown("a day") for name in ("One", "Two"))
    assert report.merged(report.document([one], "1.0"), [two]) == [one, two]
