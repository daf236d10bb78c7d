"""The far end of a call, by phone, on Twilio or on a socket, in the same words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final, Protocol

import aiohttp

from core.audio import Pcm
from core.streams.messages import SocketAttach
from dev.phone import PhoneCall
from dev.standins.socket import SocketFarEnd
from dev.standins.twilio import Call, Heard

WAIT_S: Final = 20.0
_QUIET_MS: Final = 700.0
_COME_BACK_S: Final = 25.0
"""A session waits 30 s for its client."""
_TRY_EVERY_S: Final = 0.3
_GONE: Final = (1000, 4404, 4409)
"""The close codes after which no client comes back."""
_PING_EVERY_S: Final = 4.0


class FarEnd(Protocol):
    """One caller. Positions are ms on the clock of what it heard. Waits raise TimeoutError."""

    call_id: str

    @property
    def over(self) -> bool: ...

    @property
    def sockets(self) -> int:
        """How many connections it has had; 0 by phone."""
        ...

    def now_ms(self) -> float: ...

    async def say(self, text: str) -> float:
        """Speak; return the end of what was said."""
        ...

    async def hears(self, after_ms: float, within_s: float) -> float:
        """Return when the agent's next sound began."""
        ...

    async def quiet(self) -> None:
        """Wait until the agent has said its sentence."""
        ...

    def heard(self) -> Pcm:
        """Return all that it heard, at 8 kHz."""
        ...

    async def hang_up(self) -> None: ...


class ByPhone:
    """``call_id`` is ours."""

    sockets: Final = 0

    def __init__(self, call: PhoneCall, call_id: str) -> None:
        self._call = call
        self.call_id = call_id

    @property
    def over(self) -> bool:
        return self._call.ending is not None

    def now_ms(self) -> float:
        return self._call.now_ms()

    async def say(self, text: str) -> float:
        return (await self._call.say(text)).end_ms

    async def hears(self, after_ms: float, within_s: float) -> float:
        return await self._call.speech_begins(within_s, since_ms=after_ms)

    async def quiet(self) -> None:
        await self._call.silence(_QUIET_MS, WAIT_S)

    def heard(self) -> Pcm:
        return self._call.recording.received

    async def hang_up(self) -> None:
        await self._call.hangup()
        await self._call.ended(WAIT_S)


class _Hearing:
    """The part of a far end that follows from what it heard."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard

    def now_ms(self) -> float:
        return self._heard.ms

    async def hears(self, after_ms: float, within_s: float) -> float:
        return await self._heard.until_sound(after_ms, within_s)

    async def quiet(self) -> None:
        await self._heard.until_quiet(_QUIET_MS, WAIT_S)

    def heard(self) -> Pcm:
        return self._heard.pcm()


class OnTwilio(_Hearing):
    def __init__(self, call: Call, call_id: str) -> None:
        super().__init__(call.heard)
        self._call = call
        self.call_id = call_id

    @property
    def over(self) -> bool:
        return self._call.over

    @property
    def sockets(self) -> int:
        return len(self._call.streams)

    async def say(self, text: str) -> float:
        return (await self._call.caller.say(text)).end_ms

    async def hang_up(self) -> None:
        self._call.hang_up()
        await self._call.ended(WAIT_S)


class OnSocket(_Hearing):
    """A client that comes back when its socket breaks, as clients should (docs/sessions.md)."""

    def __init__(self, http: aiohttp.ClientSession, agent_id: str) -> None:
        self._http = http
        self._path = f"/v1/agents/{agent_id}/session"
        self._client = SocketFarEnd(self._connect, "")
        super().__init__(self._client.heard)
        self._keeping: asyncio.Task[None] | None = None
        self.call_id = ""
        self.sockets = 0

    @classmethod
    async def call(cls, http: aiohttp.ClientSession, agent_id: str) -> OnSocket:
        """Begin a session; until it is ready, a client begins another one."""
        async with asyncio.timeout(WAIT_S):
            while True:
                session = cls(http, agent_id)
                try:
                    await session._client.attach()
                    ready = await session._client.event("ready", WAIT_S / 3)
                except (aiohttp.ClientError, AssertionError):
                    if session.sockets:  # or it would be a caller that nobody speaks for
                        await session._client.close()
                    await asyncio.sleep(_TRY_EVERY_S)
                else:
                    session.call_id = str(ready["callId"])
                    session._keeping = asyncio.create_task(session._keep())
                    return session

    @property
    def over(self) -> bool:
        return bool(self._client.of("ended")) or self._keeping is None or self._keeping.done()

    async def say(self, text: str) -> float:
        return (await self._client.say(text)).end_ms

    async def hang_up(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        with contextlib.suppress(ConnectionError):
            await self._client.send("end")
        await self._client.closed(WAIT_S)
        await self._client.close()

    async def _connect(self, attach: SocketAttach) -> aiohttp.ClientWebSocketResponse:
        socket = await self._http.ws_connect(self._path, heartbeat=_PING_EVERY_S)
        first: Mapping[str, Any] = {"type": "session.update"}
        if attach.resume:
            first = {"type": "resume", "sessionId": self.call_id, "lastSeq": attach.last_seq}
        await socket.send_json(first)
        self.sockets += 1
        return socket

    async def _keep(self) -> None:
        """Come back whenever the socket breaks, until the session is over.

        Raises ConnectionError: it is lost.
        """
        loop, client = asyncio.get_running_loop(), self._client
        while not client.of("ended"):
            if not client.socket.closed:
                await asyncio.sleep(0.02)
                continue
            if (code := client.socket.close_code) in _GONE:
                raise ConnectionError(f"closed with {code}: {client.events[-1]}")
            lost_s, lost_ms = loop.time(), client.heard.ms
            while loop.time() < lost_s + _COME_BACK_S:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    await client.attach(resume=True, last_seq=client.events[-1]["seq"])
                    break
                await asyncio.sleep(_TRY_EVERY_S)
            else:
                raise ConnectionError(f"not back within {_COME_BACK_S:g} s")
            client.heard.pad_to(lost_ms + 1000 * (loop.time() - lost_s))
