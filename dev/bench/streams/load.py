"""Holds a number of streams on one side, and measures their turns and the use of the machine.

As in ``dev.bench.held``, the callers keep a schedule, so that the load is the same for all sides,
and the recordings are evaluated after the calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from core.audio import Pcm
from dev.bench.held import QUESTION, SLOT_S, TURNS, Held, heard
from dev.bench.late import Late
from dev.bench.rig import running
from dev.bench.streams.rig import Rig
from dev.bench.streams.sides import Side
from dev.bench.streams.talk import Talk
from dev.bench.usage import Snapshot, pss_mib
from dev.phone import Span
from dev.standins.twilio import CallOver

PROVIDERS = "providers"
_AT_ONCE = 4  # calls being set up


class Load:
    """``answer``: the agents' synthesised answer, 8 kHz. It warms a side with a call before it
    takes the side's memory without calls."""

    def __init__(self, rig: Rig, answer: Pcm) -> None:
        self._rig = rig
        self._answer = answer
        self._late = Late(rig.stack)
        self._providers = running(rig.stack.providers.pid)
        self._idle_mib: dict[str, float] = {}

    async def hold(self, side: Side, calls: int) -> Held:
        """Hold ``calls`` streams at once, with ``TURNS`` turns each.

        Raise TimeoutError if they do not begin or end in time.
        """
        idle_mib = self._idle_mib.get(side.name)
        if idle_mib is None:
            first: list[Talk] = []
            await self._begin(side, 1, first)
            (warm,) = first
            await warm.ask(QUESTION)
            await warm.end()
            idle_mib = self._idle_mib[side.name] = await _memory(side)
        talks: list[Talk] = []
        try:
            await self._begin(side, calls, talks)
            await self._late.since_last()
            spans, cores = await self._talk(side, talks)
            late_ms = await self._late.since_last()
            busy_mib = await _memory(side)
        except CallOver:
            raise TimeoutError("a call was cut") from None
        finally:
            await asyncio.gather(*(talk.end() for talk in talks), return_exceptions=True)
        recordings = [talk.heard() for talk in talks]
        turns = await asyncio.to_thread(heard, recordings, spans, self._answer)
        return Held(calls, turns, cores, idle_mib, busy_mib, late_ms, tuple(side.pids))

    async def _begin(self, side: Side, calls: int, into: list[Talk]) -> None:
        """Begin the calls. Those that are in ``into`` have begun, even if another one does not."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def begin() -> None:
            async with gate:
                talk = await self._rig.call(side)
                into.append(talk)
                await talk.greeted()

        beginning = [asyncio.create_task(begin()) for _ in range(calls)]
        try:
            await asyncio.gather(*beginning)
        finally:
            for task in beginning:
                task.cancel()
            await asyncio.gather(*beginning, return_exceptions=True)

    async def _talk(
        self, side: Side, talks: Sequence[Talk]
    ) -> tuple[list[list[Span]], dict[str, float]]:
        """Ask the questions; return their positions in each call, and the busy cores."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        components = {**side.pids, PROVIDERS: self._providers}

        async def ask(talk: Talk, first: float) -> list[Span]:
            spans = []
            for number in range(TURNS):
                await asyncio.sleep(first + number * SLOT_S - loop.time())
                spans.append(await talk.say(QUESTION))
            return spans

        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(ask(talk, begin + number * SLOT_S / len(talks)))
                for number, talk in enumerate(talks)
            ]
            # From when all calls have begun to talk until the first one has finished.
            await asyncio.sleep(begin + SLOT_S - loop.time())
            start = await asyncio.to_thread(Snapshot.take, components)
            await asyncio.sleep(begin + TURNS * SLOT_S - loop.time())
            end = await asyncio.to_thread(Snapshot.take, components)
        await asyncio.sleep(begin + (TURNS + 1) * SLOT_S - loop.time())
        return [each.result() for each in asked], start.cores(end)


async def _memory(side: Side) -> float:
    """Return the PSS of the side's processes, in MiB."""
    found = [await asyncio.to_thread(pss_mib, pid) for pid in side.pids.values()]
    return sum(found)
