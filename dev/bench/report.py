"""The report: docs/benchmarks.md, with a JSON file and a plot for each benchmark."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from dev.bench.plot import Plot, shares
from dev.setup.livekit_server import VERSION

PACKAGES = ("aiohttp", "livekit", "livekit-api", "livekit-agents", "sqlalchemy", "baresip-python")

_HEAD = """\
# Benchmarks

`make bench` writes this file; the command in each section writes that section alone. Both sides \
of a comparison alternate in one run: compare the ratios, not the milliseconds, which depend on \
the machine. Call times are measured in the audio at the phone (RTP), not taken from our own logs. \
The providers are simulated with fixed delays.

- **Answer**: inbound, from the phone's INVITE to the 200, and to the first voiced frame that \
it hears; outbound, from the phone's 200 to the first voiced frame that it hears. A first word is \
heard whole if it begins with that frame, and 80 % of its pieces (60 ms) correlate with the \
voice's own samples, in their places.
- **Turn**: from the end of the caller's last voiced frame to the agent's first voiced frame, \
both at the phone.
- **Floor**: the configured delays of the endpointing and the providers: endpointing 200 + STT's \
final 0 + LLM's first token 250 + TTS's first byte 90 = 540 ms.
- **Path**: the round trip of an echo over the same legs, in the same run.
- **Overhead**: turn - floor - path.
- **CI**: the 95 % confidence interval of the median (bootstrap, 2,000 draws). A ratio is the \
median of the rounds' ratios, with their minimum and maximum.
"""


@dataclass(frozen=True, slots=True)
class Section:
    """One benchmark's section of the report.

    ``notes`` explain the table. ``samples``: the measurements by series, in their order, in the
    unit that the series' name gives (by default ms). ``plot`` shows them; if it is None, the plot
    is their cumulative share over time. ``failures``: errors that do not depend on the machine's
    speed; if there are any, the exit code of the run is 1.
    """

    title: str
    command: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    plot: Plot | None = None
    failures: Sequence[str] = field(default_factory=tuple)

    @property
    def name(self) -> str:
        """The name on the command line, without the options after it."""
        return self.command.partition("dev.bench ")[2].partition(" ")[0]

    def markdown(self, on: str) -> str:
        """Return the section's text. ``on``: the day and the machine."""
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
        files = f"benchmarks/{self.name}"
        shown = [
            "",
            f"![{self.title}]({files}.svg)",
            "",
            f"All samples: [{files}.json]({files}.json)",
        ]
        return "\n".join([*head, *body, *notes, *(shown if self.samples else []), ""])

    def save(self, directory: Path, on: str) -> None:
        """Write the samples (JSON) and the plot into ``directory``."""
        if not self.samples:
            return
        directory.mkdir(parents=True, exist_ok=True)
        content = {
            "title": self.title,
            "command": self.command,
            "on": on,
            "versions": versions(),
            "table": [list(self.columns), *(list(row) for row in self.rows)],
            "notes": list(self.notes),
            "samples": {
                name: [round(value, 3) for value in values] for name, values in self.samples.items()
            },
        }
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (directory / f"{self.name}.json").write_text(text + "\n")
        (self.plot or shares(self.samples)).save(directory / f"{self.name}.svg", self.title)


def machine() -> str:
    """Return the day and the machine's hardware and software, without its name."""
    cores = os.cpu_count()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cores} cores, {gib:.0f} GiB, {platform.system()} "
        f"{platform.machine()}, CPython {platform.python_version()}, load average {load:.1f}"
    )


def versions() -> dict[str, str]:
    return {"livekit-server": VERSION} | {name: version(name) for name in PACKAGES}


def document(sections: Sequence[str]) -> str:
    """Return the whole report."""
    return "\n".join(
        [
            _HEAD,
            ", ".join(f"{name} {number}" for name, number in versions().items()),
            "",
            *sections,
        ]
    )


def merged(old: str, new: Sequence[str]) -> list[str]:
    """Return a report's sections, with new ones in place of those with the same title."""
    kept = {_title(text): text for text in _sections(old)}
    return list((kept | {_title(text): text for text in new}).values())


def _sections(report: str) -> list[str]:
    return [f"## {text.rstrip()}\n" for text in report.split("\n## ")[1:]]


def _title(section: str) -> str:
    return section.partition("\n")[0]
