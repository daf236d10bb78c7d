"""Numbers as tables: in the terminal, and in docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median

PACKAGES = ("aiohttp", "livekit", "livekit-api", "livekit-agents", "sqlalchemy", "baresip-python")


@dataclass(frozen=True, slots=True)
class Section:
    """One benchmark's part of the report. ``notes``: what a reader must know to judge it."""

    title: str
    command: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self, on: str) -> str:
        """``on``: the day and the machine."""
        head = [
            f"## {self.title}",
            "",
            f"`{self.command}`, {on}",
            "",
            "| " + " | ".join(self.columns) + " |",
            "|" + "---|" * len(self.columns),
        ]
        body = ["| " + " | ".join(row) + " |" for row in self.rows]
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([*head, *body, *notes, ""])


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; ``share`` from 0 to 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def paired(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median of the rounds' ratios, and the span of all of them."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def machine() -> str:
    """The day, and what it ran on, without naming the machine."""
    cores = os.cpu_count()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cores} cores, {gib:.0f} GiB, {platform.system()} "
        f"{platform.machine()}, CPython {platform.python_version()}, load average {load:.1f}"
    )


def document(sections: Sequence[str], livekit_server: str) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Written by `make bench`, or a section at a time by the command it names. Both sides "
            "of a comparison run in alternation in one run: what counts is the ratio, not the "
            "milliseconds of a particular machine.",
            "",
            f"livekit-server {livekit_server}, {packages}",
            "",
            *sections,
        ]
    )


def merged(old: str, new: Sequence[str]) -> list[str]:
    """The sections of a report with the new ones in the place of those with the same title."""
    kept = {_title(text): text for text in _sections(old)}
    return list((kept | {_title(text): text for text in new}).values())


def _sections(report: str) -> list[str]:
    return [f"## {text.rstrip()}\n" for text in report.split("\n## ")[1:]]


def _title(section: str) -> str:
    return section.partition("\n")[0]
