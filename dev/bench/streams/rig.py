"""Shared by the benchmarks of streams: the providers, Twilio, and the sides with their numbers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from core.settings import Settings
from dev.bench.rig import agent_settings
from dev.bench.streams.bins import TwimlBins
from dev.bench.streams.sides import STREAMS, Side, ours
from dev.bench.streams.talk import Talk
from dev.stack import Stack, StackOptions
from dev.standins.twilio import TwilioServer

_ACCOUNT, _TOKEN = "AC" + 32 * "1", 32 * "2"


@dataclass
class Rig:
    """``sides``: in the order in which they take turns."""

    stack: Stack
    twilio: TwilioServer
    sides: Sequence[Side]
    _numbers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for at, side in enumerate(self.sides):
            number = self._numbers[side.name] = f"+1510555{1000 + at}"
            self.twilio.give(_ACCOUNT, number, voice_url=side.voice_url)

    async def call(self, side: Side) -> Talk:
        return await Talk.begin(self.twilio, self._numbers[side.name])


Peer = Callable[[Stack, TwimlBins], AbstractAsyncContextManager[Side]]


@contextlib.asynccontextmanager
async def rig(settings: Settings, *peers: Peer) -> AsyncIterator[Rig]:
    """Run our side, if the stack has a process that serves streams, and the peers."""
    async with contextlib.AsyncExitStack() as running:
        options = StackOptions(
            settings=settings,
            livekit=False,
            bridge=False,
            gateway=False,
            worker=0,
            providers=True,
            values=running.enter_context(agent_settings()),
        )
        stack = await running.enter_async_context(Stack(options))
        sides = [ours(stack)] if STREAMS in stack.components else []
        bins = await running.enter_async_context(TwimlBins())
        for peer in peers:
            sides.append(await running.enter_async_context(peer(stack, bins)))
        twilio = await running.enter_async_context(TwilioServer({_ACCOUNT: _TOKEN}))
        yield Rig(stack, twilio, sides)
