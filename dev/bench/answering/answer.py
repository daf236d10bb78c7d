"""The time until a caller hears the agent, at the phone: our worker and a bare LiveKit worker.

Inbound: from the phone's INVITE to the 200, and to the first voiced frame of the greeting.
Outbound: from the phone's own 200 to the first voiced frame. Bursts: the slowest of several
concurrent calls. After a publish: the first and the tenth inbound call with a new version. For
every call it is checked that the greeting was heard from the beginning of its first word.
dev.bench.answering.rig describes both sides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from core.settings import Settings
from dev.bench.answering.report import Results, section
from dev.bench.answering.rig import RINGING_S, SIDES, CallLost, Heard, Rig, Side
from dev.bench.report import Section
from dev.bench.rig import IDLE_PROCESSES, TTS_FIRST_BYTE_MS
from dev.stack.sip_backends import livekit_sip_binary

ROUNDS, PER_ROUND = 5, 5
LIVEKIT_SIP_ROUNDS = 2
BURST, BURSTS, LIVEKIT_SIP_BURSTS = 12, 5, 2
PUBLISHES, FILLERS = 5, 8
# Outbound calls beyond the measured ones, several at once, for 100 first words in total.
FURTHER, AT_ONCE = 66, 3
WARM = 2

Step = Callable[[int, int], None]
Tick = Callable[[int], None]
Call = Callable[[Side], Coroutine[Any, Any, Heard]]


async def measure(settings: Settings, step: Step) -> Section:
    livekit_sip = livekit_sip_binary(settings)
    done, total = 0, 4 * ROUNDS * PER_ROUND + 2 * BURSTS * BURST + FURTHER
    total += PUBLISHES * (FILLERS + 2)
    if livekit_sip:
        total += 4 * LIVEKIT_SIP_ROUNDS * PER_ROUND + 2 * LIVEKIT_SIP_BURSTS * BURST

    def tick(calls: int) -> None:
        nonlocal done
        done += calls
        step(done, total)

    found = [Results("the bridge")]
    async with Rig.run(settings) as rig:
        await _alternate(rig, found[0], ROUNDS, tick)
        await _bursts(rig, found[0], BURSTS, tick)
        await _further(rig, found[0], tick)
        await _publishes(rig, found[0], tick)
    if livekit_sip:
        found.append(Results("livekit-sip"))
        async with Rig.run(settings, livekit_sip=livekit_sip) as rig:
            await _alternate(rig, found[1], LIVEKIT_SIP_ROUNDS, tick)
            await _bursts(rig, found[1], LIVEKIT_SIP_BURSTS, tick)
    return section(found, _notes(livekit_sip != ""))


async def _alternate(rig: Rig, results: Results, rounds: int, tick: Tick) -> None:
    """Hold one call at a time, the sides in turn."""
    for _ in range(WARM):
        for side in SIDES:
            await rig.inbound(side)
            await rig.outbound(side)
    for calls, call in ((results.inbound, rig.inbound), (results.outbound, rig.outbound)):
        for _ in range(rounds):
            for side in SIDES:
                calls[side].append([])
            for number in range(PER_ROUND):
                # The first side alternates too.
                for side in SIDES if number % 2 else SIDES[::-1]:
                    await rig.idle()
                    calls[side][-1] += await _at_once(call, side, 1, results)
                    tick(1)


async def _bursts(rig: Rig, results: Results, count: int, tick: Tick) -> None:
    for number in range(count):
        for side in SIDES if number % 2 else SIDES[::-1]:
            await rig.idle()
            calls = await _at_once(rig.inbound, side, BURST, results)
            results.bursts[side].append(calls)
            tick(BURST)


async def _further(rig: Rig, results: Results, tick: Tick) -> None:
    for _ in range(FURTHER // AT_ONCE):
        await rig.idle()
        results.others["out"] += await _at_once(rig.outbound, "ours", AT_ONCE, results)
        tick(AT_ONCE)


async def _publishes(rig: Rig, results: Results, tick: Tick) -> None:
    for number in range(PUBLISHES):
        await rig.idle()
        await rig.publish(f"Good day, this is greeting number {number}.")
        results.first += await _at_once(rig.inbound, "ours", 1, results)
        for _ in range(FILLERS // 2):
            results.others["in"] += await _at_once(rig.inbound, "ours", 2, results)
        await rig.idle()
        results.tenth += await _at_once(rig.inbound, "ours", 1, results)
        tick(FILLERS + 2)


async def _at_once(call: Call, side: Side, count: int, results: Results) -> list[Heard]:
    """Hold calls at once; return those that were heard, and count the lost ones."""
    heard = list[Heard]()

    async def one() -> None:
        try:
            heard.append(await call(side))
        except CallLost as why:
            results.lost[side].append(str(why))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(one())
    return heard


def _notes(livekit_sip: bool) -> list[str]:
    notes = [
        f"{ROUNDS} rounds of {PER_ROUND} calls per side ({LIVEKIT_SIP_ROUNDS} with livekit-sip), "
        f"one at a time in alternation, {BURSTS} ({LIVEKIT_SIP_BURSTS}) bursts per side, "
        f"{PUBLISHES} publishes. Before each call both workers must have their {IDLE_PROCESSES} "
        "idle job processes again; after a publish this holds for the first and the tenth call "
        f"only. The called phone rings for {RINGING_S} s. The TTS sends its first byte after "
        f"{TTS_FIRST_BYTE_MS:.0f} ms. The phone, the providers, LiveKit, the gateway and both "
        "workers share the machine.",
        "Our side includes authentication, a tenant's number and the stored record (SQLite). "
        "The bare worker is dev/peers/bare_worker.py, with an inbound trunk and an individual "
        "dispatch rule at the same SIP service and no gateway; outbound it is dispatched to a new "
        "room and dials when its session has started. Ratio: median (min–max) of the rounds' "
        "ratios.",
        f"First words are counted in all calls; on our side also in {FURTHER} more outbound calls, "
        f"{AT_ONCE} at once, and in the calls between the publishes.",
        "Goals: INVITE → 200 no later than the bare worker; INVITE → first word p50 < 800 ms and "
        "≤ 0.85 times the bare worker's; 200 → first word p50 ≤ 250 ms; the slowest call of a "
        "burst ≤ 2 times a single one; the first call after a publish no slower than the tenth "
        "(medians).",
    ]
    if not livekit_sip:
        notes.append("Not compared with livekit-sip: it or Redis is missing.")
    return notes
