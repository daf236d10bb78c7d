"""How long a caller is without an agent when one is lost: a seeded loop of kills."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from statistics import median
from typing import Any, Final

import aiohttp

from core.settings import Settings
from dev.bench.recovery.faults import FAULTS
from dev.bench.recovery.loop import Line, Round, lose
from dev.bench.report import Section
from dev.bench.rig import agent_settings, control
from dev.bench.stats import SUMMARY, percentile, summary
from dev.bench.turn import ANSWER, QUESTION
from dev.phone import Phone
from dev.stack import Stack, StackOptions

KILLS: Final = 50
_SEED: Final = 19
_VALUES: Final[Mapping[str, Any]] = {"worker_idle_processes": 2}
_GOALS_MS: Final = (3000.0, 6000.0)

Step = Callable[[int, int], None]


@contextlib.asynccontextmanager
async def line(settings: Settings, workers: int = 2) -> AsyncIterator[Line]:
    with agent_settings() as agent:
        values = {**agent, **_VALUES}
        options = StackOptions(settings=settings, values=values, worker=workers)
        async with (
            Stack(options) as stack,
            aiohttp.ClientSession(stack.gateway_url) as http,
            stack.api() as livekit,
            Phone() as phone,
        ):
            await stack.set_providers(control({QUESTION: ANSWER}))
            yield Line(stack, http, livekit, phone, agent["default_agent"])


async def measure(settings: Settings, step: Step, kills: int = KILLS) -> Section:
    chance = random.Random(_SEED)
    rounds: list[Round] = []
    async with line(settings) as running:
        for number in range(kills):
            fault = FAULTS[number % len(FAULTS)]
            rounds.append(await lose(running, fault, QUESTION, pending=chance.random() < 0.5))
            step(number + 1, kills)
    return section(rounds)


def section(rounds: list[Round]) -> Section:
    silences = {
        fault: [one.silence_ms for one in rounds if one.fault == fault and one.silence_ms]
        for fault in FAULTS
    }
    every = [ms for those in silences.values() for ms in those]
    back = sum(one.silence_ms is not None for one in rounds)
    goals = (
        [
            f"Goal: {name} below {goal / 1000:g} s: {'met' if value < goal else 'missed'}."
            for name, value, goal in (
                ("p50", median(every), _GOALS_MS[0]),
                ("p95", percentile(every, 0.95), _GOALS_MS[1]),
            )
        ]
        if every
        else []
    )
    return Section(
        title="Recovery: the silence when an agent is lost",
        command="python -m dev.bench recovery",
        columns=("", *(f"silence {name}" for name in SUMMARY)),
        rows=[
            *((fault, *summary(those)) for fault, those in silences.items() if those),
            *([("all", *summary(every))] if every else []),
        ],
        samples={fault: those for fault, those in silences.items() if those},
        notes=[
            *goals,
            f"{back} of {len(rounds)} calls went on with another agent. From the fault to the next "
            "agent's first voiced frame, at the phone. Killed: SIGKILL; frozen: SIGSTOP; a worker "
            "with all its processes. Half of the callers had just asked something.",
        ],
        failures=[
            f"{one.fault}, {one.call_id}: {problem}" for one in rounds for problem in one.problems
        ],
    )
