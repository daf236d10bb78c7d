"""The cost of a recording: the same calls on streams, recorded and not, in alternation.

Each side has processes of its own: memory that calls of one side have left behind would serve those
of the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from statistics import median, median_grouped

import aiohttp

from core.settings import Settings
from dev.bench.held import ANSWER, QUESTION, SLOT_S, TURNS, Held, synthesised
from dev.bench.plot import shares
from dev.bench.report import Section
from dev.bench.rig import control
from dev.bench.stats import SUMMARY, summary
from dev.bench.streams.goals import at_most
from dev.bench.streams.load import Load
from dev.bench.streams.rig import Rig, rig
from dev.bench.streams.sides import OURS, RECORDED, ours

ROUNDS, CALLS = 5, 8
_FRAME_MS = 20.0
_STORED_S = 10.0  # the recordings of the first calls are stored: that loads libraries, once

Step = Callable[[int, int], None]


async def measure(settings: Settings, step: Step) -> Section:
    plain: list[Held] = []
    recorded: list[Held] = []
    async with (
        rig(settings, ours) as without,
        rig(settings, partial(ours, recorded=True)) as with_it,
        aiohttp.ClientSession() as http,
    ):
        holds = [await _warmed(each, http) for each in (without, with_it)]
        await asyncio.sleep(_STORED_S)
        pair = list(zip(holds, (plain, recorded), strict=True))
        for number in range(ROUNDS):
            # What grows with time must not count for one side.
            for hold, into in pair if number % 2 else reversed(pair):
                into.append(await hold())
                step(len(plain) + len(recorded), 2 * ROUNDS)
    return section(plain, recorded)


async def _warmed(rig: Rig, http: aiohttp.ClientSession) -> Callable[[], Awaitable[Held]]:
    """Return what holds calls on the rig's only side, which has held some."""
    await rig.stack.set_providers(control({QUESTION: ANSWER}))
    load = Load(rig, await synthesised(http, rig.stack.providers.address, ANSWER))
    (side,) = rig.sides
    hold = partial(load.hold, side, CALLS)
    await hold()
    return hold


def section(plain: Sequence[Held], recorded: Sequence[Held]) -> Section:
    """Return the table. The rounds of both sides were measured in pairs."""
    sides = {OURS: plain, RECORDED: recorded}
    turns = {name: [ms for held in rounds for ms in held.took_ms] for name, rounds in sides.items()}
    return Section(
        title="Recording: what it costs",
        command="python -m dev.bench recording",
        columns=(
            "",
            *(f"turn {name}" for name in SUMMARY),
            "CPU per call",
            "memory per call",
        ),
        rows=[
            (
                name,
                *summary(turns[name]),
                f"{median(held.cpu_a_call for held in rounds):.2f} % of a core",
                f"{median(held.pss_a_call_mib for held in rounds):.1f} MiB",
            )
            for name, rounds in sides.items()
        ],
        notes=[
            _verdict(plain, recorded),
            f"{ROUNDS} rounds in alternation, {CALLS} calls at once on Twilio's streams, {TURNS} "
            f"turns per call, one every {SLOT_S} s. Each side has a gateway and a stream worker of "
            "its own; CPU and memory (PSS) are those of both, after a round that does not count. "
            "The memory of a call is what they have grown by since they were idle after their "
            "first call. CPU and memory are judged by the medians of the rounds' differences, "
            "turns by the medians of all: they are counted in frames of 20 ms, so each median is "
            "interpolated within its frame (statistics.median_grouped).",
        ],
        samples=turns,
        plot=shares(turns),
    )


def _p50(rounds: Sequence[Held]) -> float:
    return median_grouped((ms for held in rounds for ms in held.took_ms), interval=_FRAME_MS)


def _verdict(plain: Sequence[Held], recorded: Sequence[Held]) -> str:
    pairs = list(zip(plain, recorded, strict=True))
    cpu = median(with_it.cpu_a_call - without.cpu_a_call for without, with_it in pairs)
    memory = median(with_it.pss_a_call_mib - without.pss_a_call_mib for without, with_it in pairs)
    wait = _p50(recorded) - _p50(plain)
    goals = [
        at_most("CPU of a recording", 3, cpu, " % of a core"),
        at_most("memory of a recording", 3, memory * 2**20 / 1e6, " MB"),
        at_most("turn p50, recorded minus not", 5, wait, " ms"),
    ]
    return f"Goals: {'; '.join(goals)}."
