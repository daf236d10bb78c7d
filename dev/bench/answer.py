"""How soon a caller hears the agent, measured at the phone: ours beside a bare LiveKit worker.

Inbound: from our INVITE to the 200, and to the first voiced frame of the greeting. Outbound:
from the phone's own 200 to the first voiced frame. A burst of calls at once, and its slowest. And
inbound again right after a publish: the first call with a new version beside the tenth. Of every
call: whether its greeting was heard from the beginning of its first word. See dev.bench.answer_rig
for what the sides are made of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from core.settings import Settings
from dev.bench.answer_rig import (
    IDLE_PROCESSES,
    RINGING_S,
    SIDES,
    TTS_FIRST_BYTE_MS,
    Heard,
    Rig,
    Side,
)
from dev.bench.report import Section
from dev.bench.stats import SUMMARY, paired, summary
from dev.sip_backends import livekit_sip_binary

ROUNDS, PER_ROUND = 5, 5
LIVEKIT_SIP_ROUNDS = 2
BURSTS, BURST = 5, 12
PUBLISHES, FILLERS = 5, 8
# Outbound calls beyond the measured ones, several at once, to have heard 100 first words.
FURTHER, AT_ONCE = 66, 3
WARM = 2

NAMES: dict[Side, str] = {"ours": "Switchroom", "bare": "bare worker"}

Step = Callable[[int, int], None]
Tick = Callable[[int], None]
Call = Callable[[Side], Coroutine[Any, Any, Heard]]
BySide = dict[Side, list[list[Heard]]]
"""Calls by round."""


def _by_side() -> BySide:
    return {side: [] for side in SIDES}


@dataclass
class Results:
    """What one SIP service gave. ``first`` and ``tenth``: calls after a publish, ours."""

    service: str
    inbound: BySide = field(default_factory=_by_side)
    outbound: BySide = field(default_factory=_by_side)
    bursts: BySide = field(default_factory=_by_side)
    first: list[Heard] = field(default_factory=list)
    tenth: list[Heard] = field(default_factory=list)
    others: dict[str, list[Heard]] = field(default_factory=lambda: {"in": [], "out": []})
    """Ours that count for the first word only."""


async def measure(settings: Settings, step: Step) -> Section:
    livekit_sip = livekit_sip_binary(settings)
    done, total = 0, 4 * ROUNDS * PER_ROUND + 2 * BURSTS * BURST + FURTHER
    total += PUBLISHES * (FILLERS + 2) + bool(livekit_sip) * 4 * LIVEKIT_SIP_ROUNDS * PER_ROUND

    def tick(calls: int) -> None:
        nonlocal done
        done += calls
        step(done, total)

    found = [Results("the bridge")]
    async with Rig.run(settings) as rig:
        await _alternate(rig, found[0], ROUNDS, tick)
        await _bursts(rig, found[0], tick)
        await _further(rig, found[0], tick)
        await _publishes(rig, found[0], tick)
    if livekit_sip:
        found.append(Results("livekit-sip"))
        async with Rig.run(settings, livekit_sip=livekit_sip) as rig:
            await _alternate(rig, found[1], LIVEKIT_SIP_ROUNDS, tick)
    return _section(found)


async def _alternate(rig: Rig, results: Results, rounds: int, tick: Tick) -> None:
    """One call at a time, the sides in turn."""
    for _ in range(WARM):
        for side in SIDES:
            await rig.inbound(side)
            await rig.outbound(side)
    for calls, call in ((results.inbound, rig.inbound), (results.outbound, rig.outbound)):
        for _ in range(rounds):
            for side in SIDES:
                calls[side].append([])
            for number in range(PER_ROUND):
                # Who goes first alternates too.
                for side in SIDES if number % 2 else SIDES[::-1]:
                    await rig.idle()
                    calls[side][-1].append(await call(side))
                    tick(1)


async def _bursts(rig: Rig, results: Results, tick: Tick) -> None:
    for number in range(BURSTS):
        for side in SIDES if number % 2 else SIDES[::-1]:
            await rig.idle()
            calls = await _at_once(rig.inbound, side, BURST)
            results.bursts[side].append(calls)
            tick(BURST)


async def _further(rig: Rig, results: Results, tick: Tick) -> None:
    for _ in range(FURTHER // AT_ONCE):
        await rig.idle()
        calls = await _at_once(rig.outbound, "ours", AT_ONCE)
        results.others["out"] += calls
        tick(AT_ONCE)


async def _publishes(rig: Rig, results: Results, tick: Tick) -> None:
    for number in range(PUBLISHES):
        await rig.idle()
        await rig.publish(f"Good day, this is greeting number {number}.")
        results.first.append(await rig.inbound("ours"))
        for _ in range(FILLERS // 2):
            results.others["in"] += await _at_once(rig.inbound, "ours", 2)
        await rig.idle()
        results.tenth.append(await rig.inbound("ours"))
        tick(FILLERS + 2)


async def _at_once(call: Call, side: Side, count: int) -> list[Heard]:
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(call(side)) for _ in range(count)]
    return [one.result() for one in calls]


def answered(call: Heard) -> float:
    return call.answered_ms


def word(call: Heard) -> float:
    return call.word_ms


def _section(found: list[Results]) -> Section:
    rows: list[tuple[str, ...]] = []
    samples: dict[str, list[float]] = {}

    def compare(what: str, calls: BySide, of: Callable[[Heard], float]) -> None:
        rounds = {side: [[of(call) for call in one] for one in calls[side]] for side in SIDES}
        ratio = paired(*([median(one) for one in rounds[side]] for side in SIDES))
        for side in SIDES:
            name = f"{what}: {NAMES[side]}"
            samples[name] = [value for one in rounds[side] for value in one]
            rows.append((name, *summary(samples[name]), ratio if side == "ours" else ""))

    def slowest(what: str, results: Results) -> None:
        worst = {
            side: [max(word(call) for call in burst) for burst in results.bursts[side]]
            for side in SIDES
        }
        for side in SIDES:
            name = f"{what}: {NAMES[side]}"
            samples[name] = worst[side]
            ratio = paired(*(worst[side] for side in SIDES)) if side == "ours" else ""
            rows.append((name, *summary(worst[side]), ratio))

    for results in found:
        compare(f"{results.service}, inbound, INVITE → 200", results.inbound, answered)
        compare(f"{results.service}, inbound, INVITE → first word", results.inbound, word)
        compare(f"{results.service}, outbound, 200 → first word", results.outbound, word)
        if results.bursts["ours"]:
            slowest(f"{results.service}, slowest of {BURST} inbound at once", results)
        for which, calls in (("first", results.first), ("tenth", results.tenth)):
            if calls:
                name = f"{results.service}, inbound, {which} call after a publish: Switchroom"
                samples[name] = [word(call) for call in calls]
                rows.append((name, *summary(samples[name]), ""))
    return Section(
        title="Answer: until the caller hears the agent",
        command="python -m dev.bench answer",
        columns=("", *SUMMARY, "ratio to bare"),
        rows=rows,
        samples=samples,
        notes=[*_notes(found), _first_words(found)],
    )


def _notes(found: list[Results]) -> list[str]:
    bridge = found[0]
    single = {
        side: median(word(call) for one in bridge.inbound[side] for call in one) for side in SIDES
    }
    times = {
        side: median(max(word(call) for call in burst) for burst in bridge.bursts[side])
        / single[side]
        for side in SIDES
    }
    notes = [
        f"{ROUNDS} rounds of {PER_ROUND} calls a side ({LIVEKIT_SIP_ROUNDS} with livekit-sip), one "
        f"at a time in alternation, {BURSTS} bursts a side, {PUBLISHES} publishes. Each call "
        f"waits until both workers have their {IDLE_PROCESSES} idle job processes again; after a "
        f"publish only the first and the tenth do. The called phone rings for {RINGING_S} s. The "
        f"TTS gives its first byte after {TTS_FIRST_BYTE_MS:.0f} ms. The phone, the providers, "
        "LiveKit, gateway and both workers share the machine.",
        "Ours has authentication, a tenant's number and the stored record (SQLite) in the path. "
        "The bare worker is dev/peers/bare_worker.py, with an inbound trunk and an individual "
        "dispatch rule at the same SIP service and no gateway; outbound it is dispatched to a new "
        "room and dials when its session has started. Ratio: median (min–max) of the rounds' "
        "ratios.",
        f"A burst's slowest call takes {times['ours']:.1f} times a single one of ours, "
        f"{times['bare']:.1f} times one of the bare worker's (INVITE → first word, medians).",
        "Goals: INVITE → 200 no later than the bare worker; INVITE → first word p50 < 800 ms and "
        "≤ 0.85 times the bare worker's; 200 → first word p50 ≤ 250 ms; a burst's slowest ≤ 2 "
        "times a single one; the first call after a publish no slower than the tenth (medians).",
    ]
    if len(found) == 1:
        notes.append("livekit-sip or its Redis was not there to compare with.")
    return notes


def _first_words(found: list[Results]) -> str:
    """Of how many calls the first word was heard whole."""

    def share(calls: list[Heard]) -> str:
        whole = sum(call.word is not None and call.word.whole for call in calls)
        return f"{whole} of {len(calls)}"

    def flat(rounds: list[list[Heard]]) -> list[Heard]:
        return [call for one in rounds for call in one]

    def both(side: Side) -> str:
        inbound = [call for r in found for call in flat(r.inbound[side]) + flat(r.bursts[side])]
        outbound = [call for r in found for call in flat(r.outbound[side])]
        if side == "ours":
            for r in found:
                inbound += r.first + r.tenth + r.others["in"]
                outbound += r.others["out"]
        return f"{NAMES[side]} outbound {share(outbound)}, inbound {share(inbound)}"

    return (
        f"First word heard whole, from its beginning and nothing before it: {both('ours')}; "
        f"{both('bare')}. The calls above, and for ours {FURTHER} outbound, {AT_ONCE} at once, and "
        "the calls between the publishes."
    )
