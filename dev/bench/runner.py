"""Runs benchmarks in turn, shows their progress, and writes the report.

Each result is written as soon as it is measured, so that a later failure does not lose it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from core.settings import Settings
from dev.bench import barge_in, density, echo, report, turn
from dev.bench.answering import answer
from dev.bench.chaos import outages
from dev.bench.chaos import trial as chaos
from dev.bench.endurance import soak
from dev.bench.recording import alignment, cost
from dev.bench.recovery import bare as recovery_bare
from dev.bench.recovery import measure as recovery
from dev.bench.report import Section
from dev.bench.requests import gateway, gateway_load, gateway_rate
from dev.bench.streams import drift, ladder, losses, turns
from dev.stack.options import ROOT

REPORT = ROOT / "docs" / "benchmarks.md"
FILES = ROOT / "docs" / "benchmarks"


Step = Callable[[int, int], None]

BENCHMARKS: dict[str, Callable[[Settings, Step], Awaitable[Section]]] = {
    "gateway": gateway.measure,
    "gateway-load": gateway_load.measure,
    "gateway-rate": gateway_rate.measure,
    "echo": echo.measure,
    "answer": answer.measure,
    "turn": turn.measure,
    "barge-in": barge_in.measure,
    "density": density.measure,
    "streams": turns.measure,
    "streams-held": ladder.measure,
    "streams-drift": drift.measure,
    "streams-losses": losses.measure,
    "recording": cost.measure,
    "recording-alignment": alignment.measure_lines,
    "recovery": recovery.measure,
    "recovery-bare": recovery_bare.measure,
    "chaos": chaos.measure,
    "outages": outages.measure,
    "soak": soak.measure,
}


async def run(
    settings: Settings,
    names: Sequence[str] = (),
    *,
    minutes: float | None = None,
    at_once: bool = False,
    seed: int = chaos.SEED,
    into_report: bool = True,
) -> int:
    """Run, print and report all benchmarks or the named ones; return 1 if any has failed.

    ``minutes``: the length of those whose length can be chosen; None: as each has it.
    ``seed``: of the chaos. ``at_once``: measure the lines of recording-alignment at the same time.
    """
    console = Console()
    failed = False
    benchmarks = dict(BENCHMARKS)
    if minutes is not None:
        benchmarks["soak"] = partial(soak.measure, minutes=minutes)
    benchmarks["chaos"] = partial(chaos.measure, minutes=minutes or chaos.MINUTES, seed=seed)
    benchmarks["recording-alignment"] = partial(
        alignment.measure_lines, minutes=minutes or alignment.MINUTES, at_once=at_once
    )
    with Progress(console=console) as progress:
        for name in names or benchmarks:
            bar = progress.add_task(name, total=None)

            def step(done: int, of: int, bar: int = bar) -> None:
                progress.update(TaskID(bar), completed=done, total=of)

            on = report.machine()
            section = await benchmarks[name](settings, step)
            if into_report:
                section.save(FILES, on)
                old = REPORT.read_text() if REPORT.exists() else ""
                REPORT.write_text(report.document(report.merged(old, [section.markdown(on)])))
            _print(console, section)
            failed = failed or bool(section.failures)
    if into_report:
        console.print(f"written: {REPORT.relative_to(ROOT)}")
    return int(failed)


def _print(console: Console, section: Section) -> None:
    table = Table(*section.columns, title=section.title)
    for row in section.rows:
        table.add_row(*row)
    console.print(table)
    for note in section.notes:
        console.print(f"  {note}")
    for failure in section.failures:
        console.print(f"  [red]failed[/]: {escape(failure)}")
    console.print()
