"""The far end of a call on each line: the same words, keys and hang-ups."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol, TypeAlias

from core.models import AgentConfig
from dev.standins.socket import SocketFarEnd
from dev.standins.twilio import Call
from tests.support.stream_rig import StreamWorker
from tests.support.worker_gateway import KeptCall
from tests.support.worker_rig import Phone, WorkerStack


class FarEnd(Protocol):
    """Whoever talks to the agent."""

    async def say(self, text: str) -> None:
        """Speak in real time."""

    async def hears(self) -> None:
        """Wait for the agent's next sound since ``say``."""

    async def press(self, keys: str) -> None: ...

    async def hang_up(self) -> None: ...


Talk: TypeAlias = contextlib.AbstractAsyncContextManager[tuple[KeptCall, FarEnd]]


class Line(Protocol):
    """Makes calls whose far end is on the line."""

    def talk(self, config: AgentConfig, **changes: Any) -> Talk:
        """Yield the record of a new call, and its far end."""


class RoomEnd:
    def __init__(self, phone: Phone) -> None:
        self._phone = phone
        self._said_at = 0.0

    async def say(self, text: str) -> None:
        await self._phone.say(text)
        # The phone has been silent for a second, in which the agent may have begun.
        self._said_at = asyncio.get_running_loop().time() - 0.9

    async def hears(self) -> None:
        await self._phone.hears(after=self._said_at)

    async def press(self, keys: str) -> None:
        for key in keys:
            await self._phone.room.local_participant.publish_dtmf(code=int(key), digit=key)

    async def hang_up(self) -> None:
        await self._phone.hang_up()


class RoomLine:
    def __init__(self, stack: WorkerStack) -> None:
        self._stack = stack

    @contextlib.asynccontextmanager
    async def talk(
        self, config: AgentConfig, **changes: Any
    ) -> AsyncIterator[tuple[KeptCall, FarEnd]]:
        call = await self._stack.dispatch(config, direction="inbound", **changes)
        async with self._stack.phone(call, status="ringing") as phone:
            async with asyncio.timeout(15):
                await phone.agent_published.wait()
            await phone.answer()
            yield call, RoomEnd(phone)


class TwilioEnd:
    def __init__(self, phone: Call) -> None:
        self._phone = phone
        self._said_ms = 0.0

    async def say(self, text: str) -> None:
        self._said_ms = (await self._phone.caller.say(text)).end_ms

    async def hears(self) -> None:
        await self._phone.heard.until_sound(self._said_ms)

    async def press(self, keys: str) -> None:
        await self._phone.caller.press(keys)

    async def hang_up(self) -> None:
        self._phone.hang_up()


class TwilioLine:
    def __init__(self, worker: StreamWorker) -> None:
        self._worker = worker

    @contextlib.asynccontextmanager
    async def talk(
        self, config: AgentConfig, **changes: Any
    ) -> AsyncIterator[tuple[KeptCall, FarEnd]]:
        call, phone = await self._worker.call(config, **changes)
        yield call, TwilioEnd(phone)
        await phone.ended()


class SocketEnd:
    def __init__(self, end: SocketFarEnd) -> None:
        self._end = end
        self._said_ms = 0.0

    async def say(self, text: str) -> None:
        await self._end.say(text)
        self._said_ms = self._end.heard.ms

    async def hears(self) -> None:
        await self._end.heard.until_sound(self._said_ms)

    async def press(self, keys: str) -> None:
        for key in keys:
            await self._end.send("dtmf", digit=key)

    async def hang_up(self) -> None:
        await self._end.send("end")


class SocketLine:
    def __init__(self, worker: StreamWorker) -> None:
        self._worker = worker

    @contextlib.asynccontextmanager
    async def talk(
        self, config: AgentConfig, **changes: Any
    ) -> AsyncIterator[tuple[KeptCall, FarEnd]]:
        async with self._worker.session(config, **changes) as (call, end):
            yield call, SocketEnd(end)
            assert await end.closed() == 1000
