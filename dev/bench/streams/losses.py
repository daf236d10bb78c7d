"""Stream workers that die or freeze while their sessions talk, and the silence that callers hear.

Sessions of both kinds talk at once, Twilio's streams and clients' sockets, through one gateway to
three stream workers. The worker with most sessions is killed (SIGKILL), or frozen (SIGSTOP, and
SIGCONT later), at a random moment of the conversation; all its sessions must go on at the others.
**Silence**: from the last sound of the former agent to the first of the next one, as heard at the
far end. What was on its way when the worker was lost is played to its end, or dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import aiohttp
import numpy as np

from core.audio import Pcm
from core.settings import Settings
from core.streams.messages import SocketAttach
from dev.bench.api import post
from dev.bench.report import Section
from dev.bench.rig import AGENT, agent_settings, control
from dev.bench.stats import SUMMARY, percentile, summary
from dev.bench.streams.goals import at_most
from dev.bench.streams.voice_urls import VoiceUrls
from dev.stack import Stack, StackOptions
from dev.stack.component import Component
from dev.standins.socket import SocketFarEnd
from dev.standins.twilio import Call, Heard, TwilioServer

Step = Callable[[int, int], None]
Way = Literal["killed", "frozen"]

LOSSES: Final = 50
"""Of each way, at least."""
AT_ONCE: Final = 6
"""Half of them Twilio's, half clients' sockets."""
SEED: Final = 19

_ACCOUNT, _TOKEN, _NUMBER = "AC" + 32 * "1", 32 * "2", "+15105551000"
_LOUD: Final = 500
_FRAME_MS: Final = 20
_BUFFERED_MS: Final = 600.0
"""What was sent ahead may still be heard for so long."""
_GOES_ON_WITHIN_S: Final = 20.0


def silence_ms(heard: Pcm, from_ms: float) -> float | None:
    """Return the length of the silence around a loss; None: nothing was heard after it.

    ``heard`` is at 8 kHz; the loss was ``from_ms`` after its beginning.
    """
    size = 8 * _FRAME_MS
    frames = heard[: len(heard) - len(heard) % size].reshape(-1, size).astype(np.int32)
    loud = np.abs(frames).max(axis=1, initial=0) > _LOUD
    begin = int(from_ms / _FRAME_MS)
    rest = np.flatnonzero(loud[begin : begin + int(_BUFFERED_MS / _FRAME_MS)])
    last = begin + (int(rest[-1]) + 1 if len(rest) else 0)
    # A pause in what was still played is none of the next agent's.
    following = np.flatnonzero(loud[last:])
    return None if not len(following) else float(following[0] * _FRAME_MS)


@dataclass(frozen=True, slots=True, kw_only=True)
class FarEnd:
    """One caller. ``call_id`` is the session's."""

    call_id: str
    heard: Heard
    connected: Callable[[], bool]
    """It still has its first socket."""


@dataclass(slots=True)
class Losses:
    """What has happened so far, by way."""

    silences: dict[Way, list[float]] = field(default_factory=lambda: {"killed": [], "frozen": []})
    unheard: list[str] = field(default_factory=list)
    """Calls whose caller heard nothing more, or lost the socket."""


class Rig:
    """``workers`` are the stack's stream workers."""

    def __init__(
        self,
        stack: Stack,
        http: aiohttp.ClientSession,
        twilio: TwilioServer,
        urls: VoiceUrls,
        agent_id: str,
    ) -> None:
        self.stack = stack
        self._http = http
        self._twilio = twilio
        self._agent_id = agent_id
        self._made: dict[str, asyncio.Future[str]] = {}
        twilio.give(_ACCOUNT, _NUMBER, voice_url=urls.add(self._session))

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, settings: Settings, workers: int = 3) -> AsyncIterator[Rig]:
        async with AsyncExitStack() as running:
            enter = running.enter_async_context
            options = StackOptions(
                settings=settings,
                livekit=False,
                bridge=False,
                worker=0,
                streams=workers,
                providers=True,
                values=running.enter_context(agent_settings()),
            )
            stack = await enter(Stack(options))
            await stack.set_providers(control({}))
            http = await enter(aiohttp.ClientSession(stack.gateway_url))
            twilio = await enter(TwilioServer({_ACCOUNT: _TOKEN}))
            urls = await enter(VoiceUrls())
            agent_id = str((await post(http, "/v1/agents", AGENT))["id"])
            yield cls(stack, http, twilio, urls, agent_id)

    @property
    def workers(self) -> list[Component]:
        names = (name for name in self.stack.components if name.startswith("streams"))
        return [self.stack.components[name] for name in names]

    async def busiest(self) -> Component:
        """Return the worker with most sessions."""
        counts = [(await self._sessions(worker), worker) for worker in self.workers]
        return max(counts, key=lambda each: each[0])[1]

    async def _sessions(self, worker: Component) -> int:
        async with self._http.get(f"{worker.address}/readyz") as answer:
            return int((await answer.json())["sessions"])

    async def _session(self, form: Any) -> str:
        body = {"agentId": self._agent_id, "from": form["From"], "to": form["To"]}
        answer = await post(self._http, "/v1/sessions/twilio", body)
        self._made[form["From"]].set_result(str(answer["sessionId"]))
        return str(answer["twiml"])

    @contextlib.asynccontextmanager
    async def on_twilio(self, number: int) -> AsyncIterator[FarEnd]:
        caller = f"+1415555{number:04}"
        made = self._made[caller] = asyncio.get_running_loop().create_future()
        call: Call = await self._twilio.call(_NUMBER, caller)
        stream = await call.streaming(timeout_s=_GOES_ON_WITHIN_S)
        try:
            yield FarEnd(
                call_id=await made,
                heard=call.heard,
                connected=lambda: stream.live and call.stream is stream,
            )
        finally:
            call.hang_up()
            await call.ended(_GOES_ON_WITHIN_S)

    @contextlib.asynccontextmanager
    async def on_socket(self) -> AsyncIterator[FarEnd]:
        async def connect(_: SocketAttach) -> aiohttp.ClientWebSocketResponse:
            socket = await self._http.ws_connect(f"/v1/agents/{self._agent_id}/session")
            await socket.send_json({"type": "session.update"})
            return socket

        client = SocketFarEnd(connect, "")
        await client.attach()
        try:
            ready = await client.event("ready", _GOES_ON_WITHIN_S)
            yield FarEnd(
                call_id=str(ready["callId"]),
                heard=client.heard,
                connected=lambda: not client.socket.closed,
            )
        finally:
            await client.close()

    async def lost(self, far: FarEnd) -> bool:
        """Return True if the call's agent was lost."""
        async with self._http.get(f"/v1/calls/{far.call_id}/diagnosis") as answer:
            lines = (await answer.json())["timeline"]
        return any(line["type"] == "agent.lost" for line in lines)

    async def lose(
        self, way: Way, into: Losses, chance: random.Random, at_once: int = AT_ONCE
    ) -> None:
        """Hold calls, lose the worker that has most of them, and measure; it is back then."""
        async with AsyncExitStack() as calls:
            ends = [
                await calls.enter_async_context(
                    self.on_socket() if number % 2 else self.on_twilio(chance.randrange(10**4))
                )
                for number in range(at_once)
            ]
            for end in ends:
                await end.heard.until_sound(timeout_s=_GOES_ON_WITHIN_S)
            await asyncio.sleep(chance.uniform(0, 2.5))
            worker = await self.busiest()
            before = [end.heard.ms for end in ends]
            if way == "killed":
                await worker.kill()
            else:
                worker.process.signal(signal.SIGSTOP)
            found = await asyncio.gather(
                *(self._silence(end, at) for end, at in zip(ends, before, strict=True))
            )
            for end, silence in zip(ends, found, strict=True):
                if not await self.lost(end):
                    continue
                if silence is None or not end.connected():
                    into.unheard.append(f"{end.call_id} ({way})")
                else:
                    into.silences[way].append(silence)
            if way == "frozen":
                worker.process.signal(signal.SIGCONT)
                await self._forgotten(worker)
        if way == "killed":
            await worker.start()

    async def _silence(self, end: FarEnd, from_ms: float) -> float | None:
        deadline = asyncio.get_running_loop().time() + _GOES_ON_WITHIN_S
        # A caller whose agent was not lost may hear nothing more: nobody asks it anything.
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.25)
            measured = silence_ms(end.heard.pcm(), from_ms)
            if measured is not None and await self.lost(end):
                return measured
        return None

    async def _forgotten(self, worker: Component) -> None:
        """Wait until the worker that woke has none of its former sessions."""
        async with asyncio.timeout(_GOES_ON_WITHIN_S):
            while await self._sessions(worker):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def measure(settings: Settings, step: Step, *, losses: int = LOSSES) -> Section:
    chance, found = random.Random(SEED), Losses()
    ways: tuple[Way, ...] = ("killed", "frozen")
    async with Rig.run(settings) as rig:
        for way in ways:
            while (done := len(found.silences[way])) < losses and len(found.unheard) < losses:
                step(sum(map(len, found.silences.values())), losses * len(ways))
                await rig.lose(way, found, chance)
                if len(found.silences[way]) == done and not found.unheard:
                    raise RuntimeError("no agent was lost with its worker")
    return section(found)


def section(found: Losses) -> Section:
    measured = {way: silences for way, silences in found.silences.items() if silences}
    everything = [silence for silences in measured.values() for silence in silences]
    goals = [
        at_most("silence p50", 3000, percentile(everything, 0.5), " ms"),
        at_most("silence p95", 6000, percentile(everything, 0.95), " ms"),
    ]
    return Section(
        title="Streams: workers that are killed or frozen",
        command="python -m dev.bench streams-losses",
        columns=("worker", *(f"silence {name}" for name in SUMMARY), "agents lost"),
        rows=[(way, *summary(silences), str(len(silences))) for way, silences in measured.items()],
        samples={str(way): silences for way, silences in measured.items()},
        notes=[f"Goals: {'; '.join(goals)}.", *_notes(found.unheard, len(everything))],
        failures=[f"not taken over: {call}" for call in found.unheard],
    )


def _notes(unheard: Sequence[str], heard: int) -> list[str]:
    return [
        f"{heard} of {heard + len(unheard)} sessions went on: their callers kept their sockets, "
        "and heard the next agent.",
        f"{AT_ONCE} sessions at once, half of them Twilio's streams, half clients' sockets, on "
        "three stream workers and one gateway; providers and callers share the machine. The "
        f"workers were lost at random moments (seed {SEED}).",
        "A killed worker's sockets break at once. A frozen one is noticed by the gateway's pings, "
        "after 1.5 s without a sign of life and half a second to connect again.",
    ]
