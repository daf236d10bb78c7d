"""A long call over a media stream on a bad line: does its delay grow?

For ten minutes, the caller's clock runs 200 ppm fast and 2 % of the caller's frames are lost:
120 ms of drift, and 600 gaps. The delay is the turn (from the end of the caller's last voiced frame
to the agent's first), which any queue that grows on either way would lengthen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from statistics import median

from core.settings import Settings
from dev.bench.report import Section
from dev.bench.rig import control
from dev.bench.stats import SUMMARY, summary
from dev.bench.streams.goals import at_most
from dev.bench.streams.rig import rig
from dev.bench.streams.sides import OURS, ours
from dev.bench.turn import ANSWER, QUESTION
from dev.standins.twilio import Network

MINUTES = 10.0
NETWORK = Network(drift_ppm=200, loss=2, seed=1)
_COMPARED = 15
"""Turns at the beginning and at the end."""

Step = Callable[[int, int], None]


async def measure(settings: Settings, step: Step, minutes: float = MINUTES) -> Section:
    async with rig(settings, ours) as running:
        await running.stack.set_providers(control({QUESTION: ANSWER}))
        running.twilio.network = NETWORK
        talk = await running.call(running.sides[0])
        await talk.greeted()
        clock = asyncio.get_running_loop()
        began, turns, lost = clock.time(), list[float](), 0
        while (into_s := clock.time() - began) < minutes * 60:
            try:
                turns.append(await talk.ask(QUESTION))
            except TimeoutError:  # the lost frames were the words
                lost += 1
            step(round(into_s), round(minutes * 60))
        longest_ms = talk.call.stream.longest_queue_ms
        await talk.end()
    return section(turns, lost, longest_ms, minutes)


def section(turns: list[float], lost: int, longest_ms: float, minutes: float) -> Section:
    first, last = turns[:_COMPARED], turns[-_COMPARED:]
    growth = median(last) - median(first)
    return Section(
        title="Streams: ten minutes of clock drift and lost frames",
        command="python -m dev.bench streams-drift",
        columns=("", *(f"turn {name}" for name in SUMMARY)),
        rows=[
            (f"the first {len(first)} turns", *summary(first)),
            (f"the last {len(last)} turns", *summary(last)),
            ("all", *summary(turns)),
        ],
        samples={f"{OURS}, in order": turns},
        notes=[
            f"Goal: {at_most('growth of the delay, of the medians', 40, abs(growth), ' ms')} "
            f"({growth:+.0f} ms).",
            f"{minutes:g} minutes, {len(turns)} turns, {lost} without an answer. The caller's "
            f"clock runs {NETWORK.drift_ppm:g} ppm fast, {NETWORK.loss:g} % of the caller's frames "
            f"are lost. The longest queue at Twilio was {longest_ms:.0f} ms.",
        ],
    )
