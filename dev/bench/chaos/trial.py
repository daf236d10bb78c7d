"""Calls by phone and by stream while one process after the other is stopped, killed or frozen.

Callers talk all the time, by phone in both directions, over Twilio's streams, and over sockets of
their own that come back when they break. No call may be lost, by whatever happens; no tool may run
twice, no phone ring twice, no caller be greeted twice; every record must be right.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from core.settings import Settings
from core.streams.messages import GRACE_S
from dev.bench.chaos import verdict
from dev.bench.chaos.callers import FarEnd
from dev.bench.chaos.conversation import Conversation
from dev.bench.chaos.faults import Fault, Part, Victims, sequence
from dev.bench.chaos.rig import Rig
from dev.bench.report import Section
from dev.phone import Answer, Phone

MINUTES: Final = 10.0
SEED: Final = 19
PHONES, TWILIOS, SOCKETS = 2, 1, 1
"""Callers at the same time."""
_TURNS: Final = (3, 6)
_BETWEEN_S: Final = (1.0, 5.0)
_PAUSE_S: Final = 1.0
"""After a call that was not placed, so that a permanent fault does not occur thousands of times."""

_FINAL_WITHIN_S: Final = GRACE_S + 45.0
"""A grace for the socket, and the time of a gateway that is killed and one that takes over."""

Step = Callable[[int, int], None]


class Trial:
    """``held`` are all conversations so far; ``faults`` all that happened."""

    def __init__(self, rig: Rig, chance: random.Random) -> None:
        self.held: list[Conversation] = []
        self.faults: list[Fault] = []
        self._rig = rig
        self._chance = chance
        self._live: list[Conversation] = []

    async def last(self, seconds: float, step: Step) -> None:
        """Let calls and faults go on for that long, and end them."""
        rig, until = self._rig, time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for lane in range(PHONES):
                group.create_task(self._phone(until, lane))
            for _ in range(TWILIOS):
                group.create_task(self._stream(until, rig.on_twilio))
            for _ in range(SOCKETS):
                group.create_task(self._stream(until, rig.on_socket))
            group.create_task(self._suffer(until, seconds, step))

    async def _suffer(self, until: float, seconds: float, step: Step) -> None:
        victims = Victims(self._rig.stack, self._chance)
        for fault in sequence(self._chance):
            await asyncio.sleep(self._chance.uniform(*_BETWEEN_S))
            if time.monotonic() >= until:
                return
            self.faults.append(fault)
            for conversation in self._live:
                conversation.mark(fault)
            await victims.suffer(fault)
            step(int(seconds - (until - time.monotonic())), int(seconds))

    async def _phone(self, until: float, lane: int) -> None:
        async with Phone(behaviour=Answer(after_s=0.5)) as phone:
            ways = [self._rig.dial, self._rig.dial_in]
            for number in itertools.count(lane):
                if time.monotonic() >= until:
                    return
                await self._hold(ways[number % len(ways)](phone), "worker")

    async def _stream(self, until: float, call: Callable[[], Awaitable[FarEnd]]) -> None:
        while time.monotonic() < until:
            await self._hold(call(), "streams")

    async def _hold(self, calling: Awaitable[FarEnd], serves: Part) -> None:
        try:
            far = await calling
        except Exception as error:
            self._rig.problems.append(f"no call: {type(error).__name__} {error}")
            await asyncio.sleep(_PAUSE_S)
            return
        conversation = Conversation(far, serves)
        self._live.append(conversation)
        try:
            await conversation.hold(self._chance, self._chance.randint(*_TURNS))
        finally:
            self._live.remove(conversation)
            self.held.append(conversation)
        await judge(self._rig, conversation)


async def judge(rig: Rig, conversation: Conversation) -> None:
    """Compare the record with the conversation, once it is final.

    A hang-up of which nobody hears, because the gateway that had the socket was killed, ends the
    call when the session has waited for its next socket.
    """
    call_id = conversation.far.call_id
    try:
        async with asyncio.timeout(_FINAL_WITHIN_S):
            while True:
                record = await rig.get(f"/v1/calls/{call_id}", wait="true", timeout="30")
                if record["disconnectionReason"]:
                    break
    except TimeoutError:
        return conversation.problems.append(f"no final record within {_FINAL_WITHIN_S:g} s")
    diagnosis = await rig.get(f"/v1/calls/{call_id}/diagnosis")
    conversation.judge(record, diagnosis["timeline"], rig.tables.runs[call_id])


async def measure(
    settings: Settings, step: Step, minutes: float = MINUTES, seed: int = SEED
) -> Section:
    async with Rig.run(settings) as rig:
        trial = Trial(rig, random.Random(seed))
        await trial.last(60 * minutes, step)
    return verdict.section(trial.held, trial.faults, rig.problems, minutes, seed)
