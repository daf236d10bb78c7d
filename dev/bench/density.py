"""The number of calls that the machine holds, with our worker and with a bare one.

For each number of calls, both sides in turn: the turns' latency at the phone, holes in the
agent's speech, and the worker's CPU and memory. A side that misses the limit twice at a number
goes no further. Everything but the worker is the same for both sides (the phone, the bridge,
LiveKit, the providers) and on the same cores.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

import aiohttp
import numpy as np

from core.audio import Pcm
from core.settings import Settings
from dev.bench.held import ANSWER, QUESTION, SLOT_S, TURNS, WORKER, Held, Line
from dev.bench.plot import Plot
from dev.bench.report import Section
from dev.bench.rig import FLOOR_MS, IDLE_PROCESSES, both_workers
from dev.bench.sides import Side
from dev.bench.stats import paired, percentile
from dev.bench.usage import MACHINE
from dev.phone.tracks import SAMPLE_RATE

# Closer together where two cores reach their limit.
LEVELS = (2, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32)
ALLOWED_MS = 400.0  # of a turn's p95, over floor and path
HOLE_MS = 60.0
TRIES = 2

Step = Callable[[int, int], None]


@dataclass
class Climb:
    """One side's results: the better try at each number of calls, and the most calls ``held``."""

    name: str
    held: int = 0
    levels: dict[int, Held] = field(default_factory=dict)


async def measure(settings: Settings, step: Step) -> Section:
    async with _line(settings) as (line, both, path_ms):
        limit_ms = FLOOR_MS + path_ms + ALLOWED_MS
        for side in both:
            await line.hold(side, 1)  # warm
        climbs = [Climb(side.name) for side in both]
        for number, calls in enumerate(LEVELS):
            for side, climb in zip(both, climbs, strict=True):
                if climb.held == (LEVELS[number - 1] if number else 0):
                    await _climb(line, side, climb, calls, limit_ms)
            step(number + 1, len(LEVELS))
            if all(climb.held < calls for climb in climbs):
                break
    return section(*climbs, path_ms=path_ms)


async def _climb(line: Line, side: Side, climb: Climb, calls: int, limit_ms: float) -> None:
    for _ in range(TRIES):
        held = await line.hold(side, calls)
        before = climb.levels.get(calls)
        if before is None or _p95(held) < _p95(before):
            climb.levels[calls] = held
        if within(held, limit_ms):
            climb.levels[calls] = held
            climb.held = calls
            return


def within(held: Held, limit_ms: float) -> bool:
    """Return True if every turn was answered in time and no answer had a long hole."""
    return held.unanswered == 0 and _p95(held) < limit_ms and held.longest_hole_ms <= HOLE_MS


@contextlib.asynccontextmanager
async def _line(settings: Settings) -> AsyncIterator[tuple[Line, list[Side], float]]:
    """Yield a line for the calls, both sides, and the path in ms (echo, without other calls)."""
    values = {"worker_max_calls": 2 * LEVELS[-1]}
    async with both_workers(settings, {QUESTION: ANSWER}, values) as rig:
        answer = await _synthesised(rig.http, rig.stack.providers.address, ANSWER)
        yield Line(rig, answer), [rig.ours, rig.bare], median(await rig.echo("echo"))


async def _synthesised(http: aiohttp.ClientSession, providers: str, text: str) -> Pcm:
    """Return the audio of the simulated TTS. It must come from the same process: espeak-ng's
    output depends on what it synthesised before."""
    body = {
        "model_id": "sonic-3",
        "transcript": text,
        "voice": {"mode": "id", "id": "default"},
        "output_format": {
            "container": "raw",
            "encoding": "pcm_s16le",
            "sample_rate": SAMPLE_RATE,
        },
    }
    headers = {"X-API-Key": "local", "Cartesia-Version": "2025-04-16"}
    async with http.post(f"{providers}/tts/bytes", json=body, headers=headers) as response:
        response.raise_for_status()
        return np.frombuffer(await response.read(), np.int16)


def section(our: Climb, bare: Climb, *, path_ms: float) -> Section:
    """Return the table and its verdict."""
    climbs = (our, bare)
    limit_ms = FLOOR_MS + path_ms + ALLOWED_MS
    rows = [
        row(climb.name, climb.levels[calls], limit_ms)
        for calls in sorted({*our.levels, *bare.levels})
        for climb in climbs
        if calls in climb.levels
    ]
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
        rows=rows,
        notes=[verdict(our, bare), *_notes(climbs, path_ms)],
        samples=_samples(climbs),
        plot=Plot(
            "calls at once",
            "turn p95, ms",
            {
                climb.name: [(calls, _p95(held)) for calls, held in climb.levels.items()]
                for climb in climbs
            },
        ),
    )


def row(name: str, held: Held, limit_ms: float) -> tuple[str, ...]:
    took = held.took_ms
    lost = f", {held.unanswered} unanswered" if held.unanswered else ""
    return (
        str(held.calls),
        name,
        f"{median(took):.0f} ms" if took else "–",
        f"{_p95(held):.0f} ms{lost}",
        f"{held.longest_hole_ms:.0f} ms",
        f"{held.cpu_a_call:.1f} % of a core",
        f"{held.pss_a_call_mib:.1f} MiB",
        f"{held.cores[WORKER]:.2f} / {held.cores[MACHINE]:.2f}",
        f"{percentile(held.late_ms, 0.95):.0f} ms" if held.late_ms else "–",
        "yes" if within(held, limit_ms) else "no",
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
        *(f"{climb.name}, {_shares(climb)}" for climb in climbs if climb.levels),
    ]


def _shares(climb: Climb) -> str:
    """Return how many cores each component kept busy at the side's highest number of calls."""
    calls = climb.held or min(climb.levels)
    cores = climb.levels[calls].cores
    parts = [f"{name} {busy:.2f}" for name, busy in cores.items() if name != MACHINE]
    other = cores[MACHINE] - sum(busy for name, busy in cores.items() if name != MACHINE)
    return f"cores busy with {calls} calls: {', '.join(parts)}, everything else {other:.2f}."


def _samples(climbs: tuple[Climb, Climb]) -> Mapping[str, list[float]]:
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


def _p95(held: Held) -> float:
    """Return the p95 in ms; infinite if no turn was answered."""
    return percentile(held.took_ms, 0.95) if held.took_ms else float("inf")
