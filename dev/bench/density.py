"""The number of calls that the machine holds, with our worker and with a bare one.

For each number of calls, both sides in turn: the turns' latency at the phone, holes in the
agent's speech, and the worker's CPU and memory. A side that misses the limit twice at a number
goes no further. Everything but the worker is the same for both sides (the phone, the bridge,
LiveKit, the providers) and on the same cores.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from statistics import median

from core.settings import Settings
from dev.bench.climb import TRIES, Climb, Limit, Step, plot, race, rows, samples, shares
from dev.bench.held import ANSWER, QUESTION, SLOT_S, TURNS, Line, synthesised
from dev.bench.report import Section
from dev.bench.rig import FLOOR_MS, IDLE_PROCESSES, both_workers
from dev.bench.sides import Side
from dev.bench.stats import paired

# Closer together where two cores reach their limit.
LEVELS = (2, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32)
ALLOWED_MS = 400.0  # of a turn's p95, over floor and path
HOLE_MS = 60.0


async def measure(settings: Settings, step: Step) -> Section:
    async with _line(settings) as (line, both, path_ms):
        limit = Limit(FLOOR_MS + path_ms + ALLOWED_MS, HOLE_MS)
        for side in both:
            await line.hold(side, 1)  # warm
        sides = {side.name: partial(line.hold, side) for side in both}
        our, bare = await race(sides, LEVELS, limit, step)
    return section(our, bare, path_ms=path_ms)


@contextlib.asynccontextmanager
async def _line(settings: Settings) -> AsyncIterator[tuple[Line, list[Side], float]]:
    """Yield a line for the calls, both sides, and the path in ms (echo, without other calls)."""
    values = {"worker_max_calls": 2 * LEVELS[-1]}
    async with both_workers(settings, {QUESTION: ANSWER}, values) as rig:
        answer = await synthesised(rig.http, rig.stack.providers.address, ANSWER)
        yield Line(rig, answer), [rig.ours, rig.bare], median(await rig.echo("echo"))


def section(our: Climb, bare: Climb, *, path_ms: float) -> Section:
    """Return the table and its verdict."""
    climbs = (our, bare)
    limit = Limit(FLOOR_MS + path_ms + ALLOWED_MS, HOLE_MS)
    return Section(
        title="Density: calls held at once",
        command="python -m dev.bench density",
        columns=(
            "calls",
            "",
            "turn p50",
            "turn p95",
            "longest hole",
            "worker's CPU per call",
            "worker's memory per call",
            "worker / all, cores busy",
            "providers late p95",
            "within the limit",
        ),
        rows=rows(climbs, limit),
        notes=[verdict(our, bare), *_notes(climbs, path_ms)],
        samples=samples(climbs),
        plot=plot(climbs, "calls"),
    )


def verdict(our: Climb, bare: Climb) -> str:
    """Return the numbers of calls, CPU and memory, with the goals."""
    shared = [calls for calls in our.levels if calls in bare.levels]
    held = our.held / bare.held if bare.held else float("inf")
    cpu = [[climb.levels[n].cpu_a_call for n in shared] for climb in (our, bare)]
    pss = [[climb.levels[n].pss_a_call_mib for n in shared] for climb in (our, bare)]
    return (
        f"Held: {our.held} and {bare.held} calls, {held:.2f} × (goal ≥ 1.3). Ratio of ours to the "
        f"bare worker's at the same number of calls: CPU per call {paired(*cpu)} (goal ≤ 1.0), "
        f"memory per call {paired(*pss)} (goal ≤ 0.6)."
    )


def _notes(climbs: tuple[Climb, Climb], path_ms: float) -> list[str]:
    idle = " and ".join(
        f"{median(held.pss_before_mib for held in climb.levels.values()):.0f}" for climb in climbs
    )
    return [
        f"The limit: every turn answered, p95 < floor {FLOOR_MS:.0f} + path {path_ms:.0f} (echo "
        f"in the same run, without other calls) + {ALLOWED_MS:.0f} ms, and no hole > "
        f"{HOLE_MS:.0f} ms in an answer; {TRIES} tries for each number of calls. {TURNS} turns "
        f"per call, one every {SLOT_S} s, evenly spread over the calls. A hole is a delay or a "
        "missing part within an answer, found by correlation with the synthesised speech.",
        "CPU: user and system time of the worker and all its job processes while all calls talk. "
        "Memory: PSS of the same processes during the calls, minus the PSS before the first one, "
        f"divided by the calls; before the first one it is {idle} MiB, with {IDLE_PROCESSES} idle "
        "processes each.",
        *(f"{climb.name}, {shares(climb)}" for climb in climbs if climb.levels),
    ]
