"""The number of streams that the machine holds: ours, a bare session's and Pipecat's.

For each number of streams, the sides in turn: the turns' latency at the caller, holes in the
agent's speech, and the CPU and memory of the side's own processes. Everything else is the same for
all sides (the simulated Twilio, the providers) and on the same cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

import aiohttp

from core.settings import Settings
from dev.bench.climb import TRIES, Climb, Limit, Step, p95, plot, race, rows, samples, shares
from dev.bench.held import ANSWER, QUESTION, SLOT_S, TURNS, synthesised
from dev.bench.report import Section
from dev.bench.rig import FLOOR_MS, control
from dev.bench.stats import paired
from dev.bench.streams.goals import at_least, at_most
from dev.bench.streams.load import Load
from dev.bench.streams.rig import rig
from dev.bench.streams.sides import OURS, PIPECAT, bare, ours, pipecat_bot

# Closer together where two cores reach a side's limit.
LEVELS = (4, 8, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64)
ALLOWED_MS = 300.0  # of a turn's p95, over the floor
LIMIT = Limit(FLOOR_MS + ALLOWED_MS)
GOAL_STREAMS = 20


async def measure(settings: Settings, step: Step) -> Section:
    async with rig(settings, ours, bare, pipecat_bot) as running, aiohttp.ClientSession() as http:
        await running.stack.set_providers(control({QUESTION: ANSWER}))
        answer = await synthesised(http, running.stack.providers.address, ANSWER)
        load = Load(running, answer)
        sides = {side.name: partial(load.hold, side) for side in running.sides}
        climbs = await race(sides, LEVELS, LIMIT, step)
    return section(climbs)


def section(climbs: Sequence[Climb]) -> Section:
    return Section(
        title="Streams: held at once",
        command="python -m dev.bench streams-held",
        columns=(
            "streams",
            "",
            "turn p50",
            "turn p95",
            "longest hole",
            "CPU per stream",
            "memory per stream",
            "own processes / all, cores busy",
            "providers late p95",
            "within the limit",
        ),
        rows=rows(climbs, LIMIT),
        notes=[*_verdict(climbs), *_notes(climbs)],
        samples=samples(climbs),
        plot=plot(climbs, "streams"),
    )


def _verdict(climbs: Sequence[Climb]) -> list[str]:
    """Return the streams held, the goals, and whether our side reached them."""
    held = ", ".join(f"{climb.name} {climb.held}" for climb in climbs)
    by_name = {climb.name: climb for climb in climbs}
    ours, theirs = by_name.get(OURS), by_name.get(PIPECAT)
    if ours is None or theirs is None:
        return [f"Held: {held}.", f"Goals are not judged: {OURS} or {PIPECAT} was not measured."]
    shared = [calls for calls in ours.levels if calls in theirs.levels]
    cpu = [[climb.levels[calls].cpu_a_call for calls in shared] for climb in (ours, theirs)]
    ratios = [our / their for our, their in zip(*cpu, strict=True)]
    most = ours.levels[ours.held or min(ours.levels)]
    gateway = 100 * most.cores["gateway"] / most.calls
    times = ours.held / theirs.held if theirs.held else float("inf")
    goals = [
        at_most("CPU per stream ÷ Pipecat's", 0.6, median(ratios)),
        at_most("memory per stream", 6, most.pss_a_call_mib * 2**20 / 1e6, " MB"),
        at_most("gateway's CPU per stream", 0.5, gateway, " % of a core"),
        at_least("streams held", GOAL_STREAMS, ours.held),
        at_least("streams held ÷ Pipecat's", 1.6, times),
    ]
    if (wanted := ours.levels.get(GOAL_STREAMS)) is not None:
        name = f"turn p95 of {GOAL_STREAMS} streams"
        goals.append(at_most(name, LIMIT.turn_ms, p95(wanted), " ms"))
    return [
        f"Held: {held}.",
        f"Goals: {'; '.join(goals)}.",
        f"{OURS} ÷ {PIPECAT} at the same number of streams, CPU per stream: {paired(*cpu)}.",
    ]


def _notes(climbs: Sequence[Climb]) -> list[str]:
    idle = ", ".join(
        f"{climb.name} {climb.levels[min(climb.levels)].pss_before_mib:.0f} MiB" for climb in climbs
    )
    return [
        f"The limit: every turn answered, and p95 < floor {FLOOR_MS:.0f} + {ALLOWED_MS:.0f} ms; "
        f"{TRIES} tries for each number of streams. {TURNS} turns per stream, one every {SLOT_S} "
        "s, evenly spread over the streams. A hole is a delay or a missing part within an answer, "
        "found by correlation with the synthesised speech; it does not count for the limit.",
        "CPU: user and system time of the side's own processes (the gateway and a process of the "
        "workers; one process of a peer) while all streams talk. Memory: PSS of the same "
        f"processes during the calls, minus the PSS after one call, divided by the calls: {idle}. "
        "Below, the phone is the simulated Twilio with its callers.",
        *(f"{climb.name}, {shares(climb)}" for climb in climbs),
    ]
