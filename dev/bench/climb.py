"""A side's climb: more and more calls held at once, up to the most that it holds.

A side that misses the limit ``TRIES`` times at a number goes no further.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from dev.bench.held import Held
from dev.bench.plot import Plot
from dev.bench.stats import percentile
from dev.bench.usage import MACHINE

Step = Callable[[int, int], None]

TRIES = 2


@dataclass(frozen=True, slots=True)
class Limit:
    """Of the turns' p95, and of the longest hole in an answer."""

    turn_ms: float
    hole_ms: float = float("inf")


@dataclass
class Climb:
    """One side's results: the better try at each number of calls, and the most calls ``held``."""

    name: str
    held: int = 0
    levels: dict[int, Held] = field(default_factory=dict)


Hold = Callable[[int], Awaitable[Held]]
"""One try to hold a number of calls. Raises TimeoutError if they do not begin or end in time, which
is the surest sign of a limit."""


async def race(
    sides: Mapping[str, Hold], levels: Sequence[int], limit: Limit, step: Step
) -> list[Climb]:
    """Let the sides climb in turn, level by level, until none holds the level."""
    climbs = [Climb(name) for name in sides]
    for number, calls in enumerate(levels):
        for climb, hold in zip(climbs, sides.values(), strict=True):
            if climb.held == (levels[number - 1] if number else 0):
                await _try(climb, calls, hold, limit)
        step(number + 1, len(levels))
        if all(climb.held < calls for climb in climbs):
            break
    return climbs


async def _try(climb: Climb, calls: int, hold: Hold, limit: Limit) -> None:
    for _ in range(TRIES):
        try:
            held = await hold(calls)
        except TimeoutError:
            continue
        before = climb.levels.get(calls)
        if before is None or p95(held) < p95(before):
            climb.levels[calls] = held
        if within(held, limit):
            climb.levels[calls] = held
            climb.held = calls
            return


def within(held: Held, limit: Limit) -> bool:
    """Return True if every turn was answered in time and no answer had a long hole."""
    in_time = held.unanswered == 0 and p95(held) < limit.turn_ms
    return in_time and held.longest_hole_ms <= limit.hole_ms


def p95(held: Held) -> float:
    """Return the p95 in ms; infinite if no turn was answered."""
    return percentile(held.took_ms, 0.95) if held.took_ms else float("inf")


def rows(climbs: Sequence[Climb], limit: Limit) -> list[tuple[str, ...]]:
    """Return the table, without its heads."""
    return [
        _row(climb.name, climb.levels[calls], limit)
        for calls in sorted({calls for climb in climbs for calls in climb.levels})
        for climb in climbs
        if calls in climb.levels
    ]


def _row(name: str, held: Held, limit: Limit) -> tuple[str, ...]:
    took = held.took_ms
    lost = f", {held.unanswered} unanswered" if held.unanswered else ""
    return (
        str(held.calls),
        name,
        f"{median(took):.0f} ms" if took else "–",
        f"{p95(held):.0f} ms{lost}",
        f"{held.longest_hole_ms:.0f} ms",
        f"{held.cpu_a_call:.1f} % of a core",
        f"{held.pss_a_call_mib:.1f} MiB",
        f"{held.own_cores:.2f} / {held.cores[MACHINE]:.2f}",
        f"{percentile(held.late_ms, 0.95):.0f} ms" if held.late_ms else "–",
        "yes" if within(held, limit) else "no",
    )


def shares(climb: Climb) -> str:
    """Return how many cores each component kept busy at the side's highest number of calls."""
    calls = climb.held or min(climb.levels)
    cores = climb.levels[calls].cores
    parts = [f"{name} {busy:.2f}" for name, busy in cores.items() if name != MACHINE]
    other = cores[MACHINE] - sum(busy for name, busy in cores.items() if name != MACHINE)
    return f"cores busy with {calls} calls: {', '.join(parts)}, everything else {other:.2f}."


def samples(climbs: Sequence[Climb]) -> Mapping[str, list[float]]:
    found: dict[str, list[float]] = {}
    for climb in climbs:
        found[f"{climb.name}, calls"] = [float(calls) for calls in climb.levels]
        held = list(climb.levels.values())
        found[f"{climb.name}, CPU per call, % of a core"] = [one.cpu_a_call for one in held]
        found[f"{climb.name}, memory per call, MiB"] = [one.pss_a_call_mib for one in held]
        for one in held:
            found[f"{climb.name}, {one.calls} calls, turns"] = one.took_ms
            holes = [turn.hole_ms for turn in one.turns]
            found[f"{climb.name}, {one.calls} calls, longest hole of each answer"] = holes
    return found


def plot(climbs: Sequence[Climb], calls: str) -> Plot:
    """Return the turns' p95 by the number of calls; ``calls``: what they are called."""
    lines = {
        climb.name: [(number, p95(held)) for number, held in climb.levels.items()]
        for climb in climbs
    }
    return Plot(f"{calls} at once", "turn p95, ms", lines)
