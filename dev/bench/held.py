"""Holds a number of calls on one side, and measures their turns and the use of the machine.

The callers keep a schedule: each asks its question every ``SLOT_S``, evenly spread over the calls,
so that the load is the same for both sides. The recordings are evaluated after the calls, so that
this does not load the machine during them.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

from core.audio import Pcm
from dev.bench.late import Late
from dev.bench.rig import Rig, running
from dev.bench.sides import Side
from dev.bench.usage import Snapshot, processes, pss_mib
from dev.phone import PhoneCall, Span
from dev.phone.tracks import SAMPLE_RATE
from dev.speech.holes import longest_hole_ms
from dev.speech.listen import speech_bounds, voiced_segments

QUESTION = "What time do you open on Sunday?"
ANSWER = "On Sunday we open from nine in the morning until late at night."
TURNS = 3
# The question takes 2.2 s, the answer 4.1 s. The answer is one clause, so that both sides have
# it synthesised in one piece.
SLOT_S = 8.5
WORKER = "worker"
_BESIDE = ("livekit-server", "bridge", "gateway", "providers")
_AT_ONCE = 3  # calls being set up: as many as there are idle processes
# After the last call is set up, for the jitter buffers to shrink again.
_SETTLE_S = 5.0
_STEADY_S = 1.5
_WAIT_S = 60.0
_POLL_S = 0.25

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Turn:
    """``took_ms``: until the agent was heard, or None. ``hole_ms``: the longest in its answer."""

    took_ms: float | None
    hole_ms: float


@dataclass(frozen=True, slots=True)
class Held:
    """``cores``: the cores that each component kept busy while all calls talked."""

    calls: int
    turns: list[Turn]
    cores: Mapping[str, float]
    pss_before_mib: float
    pss_mib: float
    late_ms: list[float]
    """The delay beyond the configured one, for each answer of the simulated providers."""
    own: Sequence[str] = (WORKER,)
    """The side's own components."""

    @property
    def took_ms(self) -> list[float]:
        return [turn.took_ms for turn in self.turns if turn.took_ms is not None]

    @property
    def unanswered(self) -> int:
        return sum(turn.took_ms is None for turn in self.turns)

    @property
    def longest_hole_ms(self) -> float:
        return max(turn.hole_ms for turn in self.turns)

    @property
    def own_cores(self) -> float:
        """The cores that the side's own components kept busy."""
        return sum(self.cores[name] for name in self.own)

    @property
    def cpu_a_call(self) -> float:
        """Their CPU per call, in % of a core."""
        return 100 * self.own_cores / self.calls

    @property
    def pss_a_call_mib(self) -> float:
        """The memory that each call added: idle processes are in both values."""
        return (self.pss_mib - self.pss_before_mib) / self.calls


class Line:
    """The phone of all calls, and the components whose CPU is counted besides the worker's."""

    def __init__(self, rig: Rig, answer: Pcm) -> None:
        """Watch the rig's components. ``answer``: the agents' synthesised answer, 8 kHz."""
        self._phone = rig.phone
        self._components = {name: running(rig.stack.components[name].pid) for name in _BESIDE}
        self._answer = answer
        self._late = Late(rig.stack)

    async def hold(self, side: Side, calls: int) -> Held:
        """Hold ``calls`` calls at once, with ``TURNS`` turns each.

        Raise TimeoutError if they are not answered or do not end in time.
        """
        idle = await _steady(side.pid)
        before = await asyncio.to_thread(pss_mib, side.pid)
        up = await self._set_up(side, calls)
        try:
            await _steady(side.pid, at_least=idle + calls)
            await asyncio.sleep(_SETTLE_S)
            await self._late.since_last()
            spans, cores = await self._talk(side, up)
            late_ms = await self._late.since_last()
            memory = await asyncio.to_thread(pss_mib, side.pid)
        finally:
            await asyncio.gather(*(call.hangup() for call in up))
        await asyncio.gather(*(call.ended(_WAIT_S) for call in up))
        received = [call.recording.received for call in up]
        turns = await asyncio.to_thread(heard, received, spans, self._answer)
        await _steady(side.pid, at_most=idle)
        return Held(calls, turns, cores, before, memory, late_ms)

    async def _set_up(self, side: Side, calls: int) -> list[PhoneCall]:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def set_up() -> PhoneCall:
            async with gate:
                await side.place(f"density-{next(_numbers)}")
                call = await self._phone.next_call(_WAIT_S)
                await call.answered(_WAIT_S)
                await call.speech_begins(_WAIT_S)
                return call

        return list(await asyncio.gather(*(set_up() for _ in range(calls))))

    async def _talk(
        self, side: Side, calls: Sequence[PhoneCall]
    ) -> tuple[list[list[Span]], dict[str, float]]:
        """Ask the questions; return their positions in each call, and the busy cores."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        components = {**self._components, WORKER: side.pid}

        async def talk(call: PhoneCall, first: float) -> list[Span]:
            spans = []
            for number in range(TURNS):
                await asyncio.sleep(first + number * SLOT_S - loop.time())
                spans.append(await call.say(QUESTION))
            return spans

        async with asyncio.TaskGroup() as tasks:
            talks = [
                tasks.create_task(talk(call, begin + number * SLOT_S / len(calls)))
                for number, call in enumerate(calls)
            ]
            # From when all calls have begun to talk until the first one has finished.
            await asyncio.sleep(SLOT_S)
            start = await asyncio.to_thread(Snapshot.take, components)
            await asyncio.sleep(begin + TURNS * SLOT_S - loop.time())
            end = await asyncio.to_thread(Snapshot.take, components)
        await asyncio.sleep(begin + (TURNS + 1) * SLOT_S - loop.time())
        return [talk.result() for talk in talks], start.cores(end)


async def synthesised(http: aiohttp.ClientSession, providers: str, text: str) -> Pcm:
    """Return the audio of the simulated TTS. It must come from the same process: espeak-ng's
    output depends on what it synthesised before."""
    body = {
        "model_id": "sonic-3",
        "transcript": text,
        "voice": {"mode": "id", "id": "default"},
        "output_format": {
            "container": "raw",
            "encoding": "pcm_s16le",
            "sample_rate": SAMPLE_RATE,
        },
    }
    headers = {"X-API-Key": "local", "Cartesia-Version": "2025-04-16"}
    async with http.post(f"{providers}/tts/bytes", json=body, headers=headers) as response:
        response.raise_for_status()
        return np.frombuffer(await response.read(), np.int16)


async def _steady(pid: int, *, at_least: int = 0, at_most: int = sys.maxsize) -> int:
    """Wait until the number of processes in the tree is stable for a while; return it.

    Raise TimeoutError.
    """
    async with asyncio.timeout(_WAIT_S):
        count, since = 0, time.monotonic()
        while True:
            now = processes(pid)
            if now != count or not at_least <= now <= at_most:
                count, since = now, time.monotonic()
            elif time.monotonic() - since >= _STEADY_S:
                return count
            await asyncio.sleep(_POLL_S)


def heard(
    recordings: Sequence[Pcm], questions: Sequence[Sequence[Span]], spoken: Pcm
) -> list[Turn]:
    """Measure the turns of all calls: what each heard, where its questions are in it, and the
    synthesised answer; 8 kHz."""
    bounds = speech_bounds(spoken, SAMPLE_RATE)
    assert bounds is not None, "the answer is silent"
    answer = spoken[_sample(bounds.start_ms) : _sample(bounds.end_ms)]
    turns = []
    for received, spans in zip(recordings, questions, strict=True):
        for span, following in zip(spans, [*spans[1:], None], strict=True):
            end = None if following is None else _sample(following.start_ms)
            turns.append(_turn(received[_sample(span.end_ms) : end], answer))
    return turns


def _turn(heard: Pcm, answer: Pcm) -> Turn:
    """Measure a turn. ``heard``: the audio from the end of its question to the next question."""
    speech = voiced_segments(heard, SAMPLE_RATE)
    if not speech:
        return Turn(None, 0.0)
    start_ms = speech[0].start_ms
    return Turn(start_ms, longest_hole_ms(heard[_sample(start_ms) :], answer, SAMPLE_RATE))


def _sample(ms: float) -> int:
    return round(ms * SAMPLE_RATE / 1000)
