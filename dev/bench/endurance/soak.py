"""Holds calls for a given time, and checks that nothing grows.

The time is divided into rounds. In each, several calls are held at once; then all of them end,
and a sample is taken once the stack is at rest. Without a call, more files, tasks or rooms than
after earlier rounds are a leak. Memory is judged by its trend over these samples. The first rounds
are not judged, as caches fill and code is loaded then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

import aiohttp

from core.settings import Settings
from dev.bench.endurance.calls import Load
from dev.bench.endurance.samples import FORK_SERVER, Sample, Watch
from dev.bench.endurance.verdict import (
    COLUMNS,
    PER_CALLS,
    SETTLED,
    Judged,
    judge,
    judge_latency,
    judge_number,
)
from dev.bench.plot import Plot
from dev.bench.report import Section
from dev.stack import Stack, StackOptions
from dev.stack.options import HOST
from dev.stack.ports import PORTS

# Half of what this program holds at once on two cores (the density benchmark).
CALLS_AT_ONCE = 2
MINUTES = 5.0
ROUNDS, WARM_ROUNDS = 10, 2
IDLE_PROCESSES = 3
_SAMPLE_EVERY_S = 3.0
# For the calls of a round to end, and the stack to come to rest.
_REST_S = 8.0
_LOOK_EVERY_S, _LOOKS_FOR_REST = 0.5, 80
_LEAST_ROUND_S = 5.0
_SETTLE_S = 1.0
_PARTS = ("gateway", "bridge", "worker", FORK_SERVER, "livekit-server")

Step = Callable[[int, int], None]


async def measure(settings: Settings, step: Step, minutes: float = MINUTES) -> Section:
    """Run the soak. ``minutes``: from the first call to the end of the last."""
    round_s = max(60 * minutes / ROUNDS - _REST_S, _LEAST_ROUND_S)
    busy: list[Sample] = []
    calm: list[Sample] = []
    async with _stack(settings) as (load, watch):
        started = time.monotonic()
        for number in range(ROUNDS):
            await _round(load, watch, round_s, busy)
            await _at_rest(watch)
            calm.append(await watch.sample(load.begun))
            step(number + 1, ROUNDS)
        took_s = time.monotonic() - started
        completed = await watch.records("completed")
        mishaps = await watch.mishaps()
    return _section(load, busy, calm, completed, mishaps, minutes, took_s)


@contextlib.asynccontextmanager
async def _stack(settings: Settings) -> AsyncIterator[tuple[Load, Watch]]:
    async with contextlib.AsyncExitStack() as cleanup:
        port = PORTS.take(HOST)
        cleanup.callback(PORTS.give_back, port)
        values = {"worker_idle_processes": IDLE_PROCESSES, "worker_metrics_port": port}
        stack = await cleanup.enter_async_context(
            Stack(StackOptions(settings=settings, values=values))
        )
        http = await cleanup.enter_async_context(aiohttp.ClientSession(stack.gateway_url))
        livekit = stack.api()
        cleanup.push_async_callback(livekit.aclose)
        metrics = {
            "gateway": f"{stack.gateway_url}/metrics",
            "bridge": f"{stack.bridge_url}/metrics",
            "worker": f"http://{HOST}:{port}/metrics",
        }
        yield await Load.prepare(stack, http), Watch(stack, http, livekit, metrics)


async def _round(load: Load, watch: Watch, seconds: float, busy: list[Sample]) -> None:
    async def look() -> None:
        while True:
            await asyncio.sleep(_SAMPLE_EVERY_S)
            busy.append(await watch.sample(load.begun))

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look())
        await load.hold(CALLS_AT_ONCE, seconds)
        looking.cancel()


async def _at_rest(watch: Watch) -> None:
    """Wait until nothing is left of any call; after 40 s the sample shows what is."""
    for _ in range(_LOOKS_FOR_REST):
        if not any((await watch.left()).values()):
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    # Closed connections and ended job processes are released a moment later.
    await asyncio.sleep(_SETTLE_S)


def _section(
    load: Load,
    busy: Sequence[Sample],
    calm: Sequence[Sample],
    completed: int,
    mishaps: Sequence[str],
    minutes: float,
    took_s: float,
) -> Section:
    judged_from = calm[WARM_ROUNDS - 1].calls
    latencies = _latencies(load, judged_from)
    verdict: list[Judged] = [
        *judge(calm[WARM_ROUNDS:]),
        judge_number("calls lost", len(load.lost), 0),
        judge_number("records completed", completed, load.begun - len(load.lost)),
        *(judge_latency(name, values) for name, values in latencies.items() if values),
    ]
    rss = {part: f"{part}, RSS (MiB)" for part in _PARTS}
    every = sorted([*busy, *calm], key=lambda sample: sample.at_s)
    return Section(
        title="Soak: whether anything grows",
        command=f"python -m dev.bench soak --minutes {minutes:g}",
        columns=COLUMNS,
        rows=[line.row for line in verdict],
        failures=[line.failure for line in verdict if line.failure]
        + [*load.lost[:10], *mishaps[:10]],
        samples=_samples("without calls", calm) | _samples("at load", busy) | latencies,
        plot=Plot(
            "minutes",
            "RSS (MiB)",
            {
                part: [(each.at_s / 60, each.values[name]) for each in every if name in each.values]
                for part, name in rss.items()
            },
        ),
        notes=[
            f"{load.begun} calls in {took_s / 60:.0f} minutes, {CALLS_AT_ONCE} at once, "
            f"inbound and outbound, ended by the phone, the agent and the API in turn. {ROUNDS} "
            "rounds of calls; a sample is taken after each, when all calls have ended; the first "
            f"{WARM_ROUNDS} rounds are not judged.",
            f"Growth over {PER_CALLS} calls: Theil-Sen slope over the calls that had begun. "
            "The job processes end with their calls; they are forked from the fork server. "
            "The exit code is 1 if a count grows, if a call is lost, if a record is wrong, or if "
            "memory grew beyond the limit within the run and its whole interval is beyond it.",
        ],
    )


def _latencies(load: Load, judged_from: int) -> dict[str, list[float]]:
    held = sorted(
        (call for call in load.held if call.calls > judged_from), key=lambda call: call.calls
    )
    return {
        "inbound, INVITE → first word": [
            call.first_word_ms for call in held if call.way == "inbound"
        ],
        "outbound, 200 → first word": [
            call.first_word_ms for call in held if call.way == "outbound"
        ],
        "turn": [turn for call in held for turn in call.turns_ms],
    }


def _samples(when: str, samples: Sequence[Sample]) -> dict[str, list[float]]:
    names = [name for name in samples[0].values if name not in SETTLED] if samples else []
    found = {name: [each.values.get(name, 0.0) for each in samples] for name in [*names, *SETTLED]}
    found |= {"s": [each.at_s for each in samples], "calls": [float(s.calls) for s in samples]}
    return {f"{when}: {name}": values for name, values in found.items()}
