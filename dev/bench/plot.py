"""A benchmark's plot as an SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Plot:
    """``lines``: by name, points in the order of their x."""

    x: str
    y: str
    lines: Mapping[str, Line]

    def save(self, path: Path, title: str) -> None:
        # No date and no random ids, so that the same numbers give the same file.
        with matplotlib.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none"}):
            figure = Figure(figsize=(7.0, 3.5), layout="constrained")
            axes = figure.subplots()
            for name, points in self.lines.items():
                axes.plot(*zip(*points, strict=True), label=name, marker=_marker(points))
            axes.set(title=title, xlabel=self.x, ylabel=self.y)
            axes.grid(alpha=0.3)
            axes.legend()
            figure.savefig(path, format="svg", metadata={"Date": None})


def shares(samples: Mapping[str, Sequence[float]]) -> Plot:
    """Return a plot of the cumulative share of each series over time (ms)."""
    return Plot(
        "ms", "share", {name: _cumulative(values) for name, values in samples.items() if values}
    )


def _cumulative(values: Sequence[float]) -> Line:
    ordered = sorted(values)
    return [(value, (rank + 1) / len(ordered)) for rank, value in enumerate(ordered)]


def _marker(points: Line) -> str:
    return "o" if len(points) <= 20 else ""
