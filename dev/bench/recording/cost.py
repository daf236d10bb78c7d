"""The cost of a recording: the same calls on streams, recorded and not, in alternation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import aiohttp

from core.settings import Settings
from dev.bench.held import ANSWER, QUESTION, SLOT_S, TURNS, Held, synthesised
from dev.bench.plot import shares
from dev.bench.report import Section
from dev.bench.rig import control
from dev.bench.stats import SUMMARY, summary
from dev.bench.streams.goals import at_most
from dev.bench.streams.load import Load
from dev.bench.streams.rig import rig
from dev.bench.streams.sides import OURS, RECORDED, ours

ROUNDS, CALLS = 5, 8
_STORED_S = 10.0  # the recordings of the first calls are stored: that loads libraries, once

Step = Callable[[int, int], None]


async def measure(settings: Settings, step: Step) -> Section:
    plain: list[Held] = []
    recorded: list[Held] = []
    async with (
        rig(settings, ours, partial(ours, recorded=True)) as running,
        aiohttp.ClientSession() as http,
    ):
        await running.stack.set_providers(control({QUESTION: ANSWER}))
        answer = await synthesised(http, running.stack.providers.address, ANSWER)
        for side in running.sides:  # warm
            await Load(running, answer).hold(side, CALLS)
        await asyncio.sleep(_STORED_S)
        load = Load(running, answer)
        pair = list(zip(running.sides, (plain, recorded), strict=True))
        for number in range(ROUNDS):
            # What grows with time must not count for one side.
            for side, into in pair if number % 2 else reversed(pair):
                into.append(await load.hold(side, CALLS))
                step(len(plain) + len(recorded), 2 * ROUNDS)
    return section(plain, recorded)


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
            f"turns per call, one every {SLOT_S} s. CPU and memory (PSS) are those of the gateway "
            "and the stream worker, after a round of each that does not count; the goals are "
            "judged by the medians of the rounds' differences, for memory that of all calls "
            "together.",
        ],
        samples=turns,
        plot=shares(turns),
    )


def _verdict(plain: Sequence[Held], recorded: Sequence[Held]) -> str:
    pairs = list(zip(plain, recorded, strict=True))
    cpu = median(with_it.cpu_a_call - without.cpu_a_call for without, with_it in pairs)
    memory = median(
        (with_it.pss_mib - without.pss_mib) / without.calls for without, with_it in pairs
    )
    wait = median(median(with_it.took_ms) - median(without.took_ms) for without, with_it in pairs)
    goals = [
        at_most("CPU of a recording", 3, cpu, " % of a core"),
        at_most("memory of a recording", 3, memory * 2**20 / 1e6, " MB"),
        at_most("turn p50, recorded minus not", 5, wait, " ms"),
    ]
    return f"Goals: {'; '.join(goals)}."
