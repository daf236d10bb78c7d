"""Judges the growth in the samples of a soak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dev.bench.endurance.samples import Sample
from dev.bench.endurance.trend import Trend, ends, theil_sen

PER_CALLS = 500
RSS_MIB, RSS_SHARE = 10.0, 0.05
"""The allowed growth of a process's memory over ``PER_CALLS`` calls: the greater of the two."""
SLACK = 3
"""The allowed difference in files, threads, tasks or processes between two samples at rest."""
LATENCY_RATIO = 1.15
SETTLED = "phone legs", "rooms", "spooled calls", "unfinished records"
"""The counts that must be 0 when there is no call."""

_RSS, _PSS = ", RSS (MiB)", ", PSS (MiB)"


@dataclass(frozen=True, slots=True)
class Judged:
    """One line of the verdict. ``failure``: the message if it fails the run and not only the goal.

    The trend of a short run is extrapolated to many more calls than it had. So memory fails a run
    only if its whole interval and the observed growth are beyond the limit. Latency never fails a
    run, as it depends on the other processes on the machine.
    """

    name: str
    first: str
    last: str
    growth: str
    limit: str
    grows: bool
    failure: str = ""

    @property
    def row(self) -> tuple[str, ...]:
        verdict = "no" if self.grows else "yes"
        return self.name, self.first, self.last, self.growth, self.limit, verdict


COLUMNS = (
    "without calls",
    "first fifth",
    "last fifth",
    f"per {PER_CALLS} calls (95 % CI)",
    "limit",
    "holds",
)


def judge(calm: Sequence[Sample]) -> list[Judged]:
    """Judge ``calm``: the samples after the rounds, without calls."""
    return [*_memory(calm), *_counts(calm), *_settled(calm)]


def judge_latency(name: str, values: Sequence[float]) -> Judged:
    """Judge a latency. ``values``: ms, in the order of the calls."""
    first, last = ends(values)
    grows = last > LATENCY_RATIO * first
    limit = f"≤ {LATENCY_RATIO:g} ×"
    return Judged(name, f"{first:.0f} ms", f"{last:.0f} ms", f"{last / first:.2f} ×", limit, grows)


def judge_number(name: str, found: int, wanted: int) -> Judged:
    """Judge a number that is counted once, at the end."""
    wrong = found != wanted
    failure = f"{name}: {found}, not {wanted}" if wrong else ""
    return Judged(name, "", str(found), "", str(wanted), wrong, failure)


def _memory(calm: Sequence[Sample]) -> Iterator[Judged]:
    for name in calm[0].values:
        if not name.endswith(_RSS):
            continue
        values = [sample.values[name] for sample in calm]
        first, last = ends(values)
        growth = theil_sen([sample.calls for sample in calm], values).over(PER_CALLS)
        limit = max(RSS_MIB, RSS_SHARE * first)
        title = name.removesuffix(_RSS) + ", RSS"
        yield Judged(
            title,
            f"{first:.1f} MiB",
            f"{last:.1f} MiB",
            f"{growth.slope:+.1f} MiB ({growth.low:+.1f} to {growth.high:+.1f})",
            f"+{limit:.0f} MiB",
            growth.slope > limit,
            _failed(growth, last - first, limit, title),
        )


def _failed(growth: Trend, seen: float, limit: float, title: str) -> str:
    if min(growth.low, seen) <= limit:
        return ""
    return f"{title} grew by {seen:.0f} MiB, at least {growth.low:.0f} MiB over {PER_CALLS} calls"


def _counts(calm: Sequence[Sample]) -> Iterator[Judged]:
    for name in calm[0].values:
        if name.endswith((_RSS, _PSS)) or name in SETTLED:
            continue
        values = [sample.values[name] for sample in calm]
        first, last = ends(values)
        growth = theil_sen([sample.calls for sample in calm], values).over(PER_CALLS)
        grows = last > first + SLACK
        yield Judged(
            name,
            f"{first:.0f}",
            f"{last:.0f}",
            f"{growth.slope:+.1f} ({growth.low:+.1f} to {growth.high:+.1f})",
            f"+{SLACK}",
            grows,
            f"{name}: {last:.0f} after {first:.0f}" if grows else "",
        )


def _settled(calm: Sequence[Sample]) -> Iterator[Judged]:
    for name in SETTLED:
        most = max(sample.values[name] for sample in calm)
        failure = f"{name}: {most:.0f} left after all calls had ended" if most else ""
        last = f"{calm[-1].values[name]:.0f}"
        yield Judged(name, f"{calm[0].values[name]:.0f}", last, "", "0", bool(most), failure)
