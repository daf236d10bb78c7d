"""Shows the progress of the stack: a live list on a terminal, else one line per event."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from dev.stack.component import Progress, State

DETAIL_INTERVAL_S = 5.0
"""The interval at which a long step's detail is printed when there is no terminal."""

MARKS = {
    State.READY: Text("✓", style="green"),
    State.FAILED: Text("✗", style="bold red"),
    State.STOPPED: Text("·", style="dim"),
}


@dataclass(slots=True)
class _Row:
    progress: Progress
    since: float  # monotonic, start of the phase
    printed: float = 0.0  # monotonic, the last line about it

    def elapsed_s(self) -> float:
        if self.progress.state in (State.STARTING, State.STOPPING):
            return time.monotonic() - self.since
        return self.progress.elapsed_s


class Checklist:
    """The ``report`` of a stack; as a context manager it ends the live list on exit."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._rows: dict[str, _Row] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.pause()

    def pause(self) -> None:
        """Leave the list on the screen as it is; the next report starts a new one below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._rows.clear()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        row = self._rows.get(progress.component)
        if row is None or row.progress.state is not progress.state:
            row = self._rows[progress.component] = _Row(progress, now - progress.elapsed_s)
        row.progress = progress
        if not self.console.is_terminal:
            self._print(row, now)
        elif self._live is None:
            self._live = Live(
                console=self.console, get_renderable=self._table, refresh_per_second=8
            )
            self._live.start()

    def _print(self, row: _Row, now: float) -> None:
        progress = row.progress
        moving = progress.state in (State.STARTING, State.STOPPING)
        if moving and (not progress.detail or now - row.printed < DETAIL_INTERVAL_S):
            return
        row.printed = now
        what = progress.detail if moving else f"{progress.state} in {row.elapsed_s():.1f} s"
        text = f"{progress.component:<16}{what}"
        if progress.detail and not moving:
            text += f"  {progress.detail}"
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(width=1)
        table.add_column(min_width=14)
        table.add_column(justify="right", min_width=7)
        table.add_column(overflow="fold")
        for name, row in list(self._rows.items()):
            progress = row.progress
            mark = MARKS.get(progress.state) or Spinner("dots", style="cyan")
            table.add_row(
                mark,
                name,
                f"{row.elapsed_s():.1f} s",
                Text(progress.detail or str(progress.state), style="dim"),
            )
        return table
