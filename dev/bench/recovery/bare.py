"""What a caller hears when the agent of a bare livekit-agents worker dies: the other side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psutil

from core.models import new_id
from core.settings import Settings
from dev.bench.recovery.faults import tree
from dev.bench.recovery.loop import UNDER_WAY_MS, converse
from dev.bench.report import Section
from dev.bench.rig import Rig, both_workers
from dev.bench.turn import ANSWER, QUESTION
from dev.phone import CallEnded

ROUNDS: Final = 3
_LISTENED_S: Final = 60.0
_WAIT_S: Final = 20.0

Step = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Deserted:
    """A call whose agent was killed. ``silence_ms``: until something was heard again, or until the
    end of the call or of the measurement. ``ending``: which of these it was."""

    silence_ms: float
    ending: str


async def measure(settings: Settings, step: Step, rounds: int = ROUNDS) -> Section:
    calls: list[Deserted] = []
    async with both_workers(settings, {QUESTION: ANSWER}) as rig:
        for number in range(rounds):
            calls.append(await _desert(rig))
            step(number + 1, rounds)
    return section(calls)


async def _desert(rig: Rig) -> Deserted:
    await rig.bare.place(new_id("room"))
    call = await rig.phone.next_call(_WAIT_S)
    try:
        await converse(call, QUESTION)
        job = await asyncio.to_thread(_in_a_call, rig.bare.pid)
        lost_ms = call.now_ms()
        job.kill()
        try:
            began_ms = await call.speech_begins(_LISTENED_S, since_ms=lost_ms + UNDER_WAY_MS)
        except CallEnded:
            return Deserted(call.now_ms() - lost_ms, "hung up")
        except TimeoutError:
            return Deserted(_LISTENED_S * 1000, "nothing")
        return Deserted(began_ms - lost_ms, "speech")
    finally:
        with contextlib.suppress(Exception):
            await call.hangup()
            await call.ended(_WAIT_S)


def _in_a_call(worker: int) -> psutil.Process:
    """Return the worker's process that has the call: the one with media sockets."""
    for process in tree(worker):
        with contextlib.suppress(psutil.Error):
            if process.net_connections("udp"):
                return process
    raise LookupError("no process of the bare worker is in a call")


def section(calls: list[Deserted]) -> Section:
    return Section(
        title="Recovery: the silence when the agent of a bare livekit-agents worker is killed",
        command="python -m dev.bench recovery-bare",
        columns=("call", "silence", "then"),
        rows=[
            (str(number), f"{one.silence_ms / 1000:.1f} s", one.ending)
            for number, one in enumerate(calls, 1)
        ],
        notes=[
            "LiveKit's example of an agent that dials, with the same models as ours; its job "
            f"process is killed after the first answer, and the phone listens for {_LISTENED_S:g} "
            "s. Nothing: no speech by then, and no hang-up.",
        ],
        samples={"bare worker": [one.silence_ms for one in calls]},
        failures=[],
    )
