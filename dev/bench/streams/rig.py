"""Shared by the benchmarks of streams: the providers, Twilio, and the sides with their numbers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from core.settings import Settings
from dev.bench.rig import agent_settings
from dev.bench.streams.sides import Side
from dev.bench.streams.talk import Talk
from dev.bench.streams.voice_urls import VoiceUrls
from dev.stack import Stack, StackOptions
from dev.standins.twilio import TwilioServer

MOST = 100
"""The most streams at once."""
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


Start = Callable[[Stack, VoiceUrls], AbstractAsyncContextManager[Side]]


@contextlib.asynccontextmanager
async def rig(settings: Settings, *sides: Start) -> AsyncIterator[Rig]:
    """Run the sides, which alternate in this order."""
    async with contextlib.AsyncExitStack() as running:
        values = {"streams_max_sessions": MOST, **running.enter_context(agent_settings())}
        options = StackOptions(
            settings=settings, bridge=False, worker=0, streams=1, providers=True, values=values
        )
        stack = await running.enter_async_context(Stack(options))
        urls = await running.enter_async_context(VoiceUrls())
        up = [await running.enter_async_context(start(stack, urls)) for start in sides]
        twilio = await running.enter_async_context(TwilioServer({_ACCOUNT: _TOKEN}))
        yield Rig(stack, twilio, up)
