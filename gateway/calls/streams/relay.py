"""Pass frames between a client's socket and its session's socket on a worker, as they are.

    client's socket                        worker's socket
    closed with 1000, 1001 or no code   →  1000
    broken, or closed with another code →  4000 (LOST): the session waits for another socket
    stalled (no pong, no reads)         →  4000; the client gets 1013 and is cut off
    the gateway stops: client gets 1012 →  4000
    the worker's code                   ←  closed
    1011, unless attached again         ←  broken, or the worker goes away

Nothing is queued here: a side that does not read stops the other side's reading. So memory is
bounded by the sockets' buffers, and a side that stalls is noticed by its missing pongs, or by a
write that does not drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from aiohttp import ClientError, WSMsgType, web

from core.errors import Gone, Unavailable
from core.streams.messages import LOST
from core.tasks.first_of import first_of
from gateway.calls.streams.workers import WorkerSocket
from gateway.http.pace import USUAL, Pace
from gateway.http.sockets import CLOSE_S, Socket

log = logging.getLogger(__name__)

OVER, GOING_AWAY, BROKEN, RESTART, TRY_LATER = 1000, 1001, 1011, 1012, 1013
"""WebSocket close codes (RFC 6455 §7.4, and IANA's registry for the last two)."""

# A browser closes with 1001 when its page is left. aiohttp's 0: a close frame without a code.
_NORMAL: Final = frozenset({OVER, GOING_AWAY, 0})
# The worker, or a proxy before it, goes away; the session may still be there.
_WORKER_GOES: Final = frozenset({GOING_AWAY, BROKEN, RESTART})
_DATA: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY})
_ERRORS: Final = (ClientError, ConnectionError, RuntimeError)
_RETRY_S = 0.2
_FAREWELL_S = 0.2

AttachAgain: TypeAlias = Callable[[], Awaitable[WorkerSocket]]


class _Side:
    """One socket: when it was last known to be alive, and since when a write to it waits."""

    def __init__(self, socket: Socket | WorkerSocket, clock: Callable[[], float]) -> None:
        self.socket = socket
        self._clock = clock
        self.heard_at = clock()
        self._writing_since: float | None = None
        self._pinging: asyncio.Task[None] | None = None

    def ping(self) -> None:
        """Send a ping, unless the last one still waits to be sent.

        A task, which may wait as long as the socket stalls. It must not be cancelled before the
        socket is closed: aiohttp would cancel all other writes that wait.
        """
        if self._pinging is None or self._pinging.done():
            self._pinging = asyncio.create_task(self._ping(), name="ping")

    async def _ping(self) -> None:
        with contextlib.suppress(*_ERRORS):  # its reader notices
            await self.socket.ping()

    async def close(self, code: int, within_s: float = CLOSE_S) -> None:
        """Close the socket; if the far end does not answer in time, drop the connection."""
        if self._pinging is not None:
            self._pinging.cancel()
        try:
            async with asyncio.timeout(within_s):
                if isinstance(self.socket, web.WebSocketResponse):
                    await self.socket.close(code=code, drain=False)
                else:
                    await self.socket.close(code=code)
        except (*_ERRORS, TimeoutError):
            log.debug("a socket did not close properly")

    async def send(self, data: bytes, kind: WSMsgType) -> None:
        self._writing_since = self._clock()
        try:
            await self.socket.send_frame(data, kind)
        finally:
            self._writing_since = None

    async def answer(self, kind: WSMsgType, data: bytes) -> bool:
        """Handle a control frame of this socket; False: the socket is closed."""
        if kind is WSMsgType.PONG:
            self.heard_at = self._clock()
            return True
        if kind is WSMsgType.PING:
            await self.send(data, WSMsgType.PONG)
            return True
        return False

    def waits(self) -> bool:
        """Return True while a write to this socket does not drain."""
        return self._writing_since is not None

    def stalled(self, patience_s: float) -> bool:
        moment = self._clock()
        if self._writing_since is not None and moment - self._writing_since > patience_s:
            return True
        return moment - self.heard_at > patience_s

    def excuse(self) -> None:
        """Count the socket as alive: its pongs cannot be read at the moment."""
        self.heard_at = self._clock()


class Relay:
    """``run`` passes frames until either side ends, and closes both."""

    def __init__(
        self,
        client: Socket,
        worker: WorkerSocket,
        *,
        transport: asyncio.Transport | None,
        stopping: asyncio.Event,
        attach_again: AttachAgain | None = None,
        pace: Pace = USUAL,
    ) -> None:
        """``transport``: the client's. ``attach_again``: for when the worker's socket breaks.

        It raises as ``StreamSessions.attach`` does. None: the client is closed with 1011 at once.
        """
        self._clock = asyncio.get_running_loop().time
        self._client = _Side(client, self._clock)
        self._worker = _Side(worker, self._clock)
        self._transport = transport
        self._stopping = stopping
        self._attach_again = attach_again
        self._pace = pace
        self._attached = asyncio.Event()
        self._attached.set()
        self._worker_stalls = asyncio.Event()

    async def run(self) -> None:
        tasks = [
            asyncio.create_task(work, name=f"relay {name}")
            for name, work in (
                ("up", self._up()),
                ("down", self._down()),
                ("watch", self._watch()),
                ("stop", self._stop()),
            )
        ]
        client_code, worker_code = None, LOST
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            client_code, worker_code = next(task for task in tasks if task in done).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._close(client_code, worker_code)

    # Each of these returns the codes with which client and worker are to be closed.

    async def _up(self) -> tuple[int | None, int]:
        client = self._client
        receive = client.socket.receive
        while True:
            message = await receive()
            if message.type in _DATA:
                if not self._attached.is_set():
                    await self._attached.wait()
                try:
                    await self._worker.send(message.data, message.type)
                except _ERRORS:
                    # ``_down`` notices, and attaches again; this frame is lost with the socket.
                    await asyncio.sleep(0)
            elif not await client.answer(message.type, message.data):
                normal = message.type is WSMsgType.CLOSE and message.data in _NORMAL
                return None, OVER if normal else LOST

    async def _down(self) -> tuple[int | None, int]:
        while True:
            # A socket must not be closed while it is read: aiohttp would close with 1000 then.
            code, _ = await first_of(self._from_worker(), self._worker_stalls.wait())
            if code is not None:
                return code, OVER
            if not await self._reattached():
                return BROKEN, LOST

    async def _from_worker(self) -> int | None:
        """Pass the worker's frames on until it closes; return its code, None: it broke."""
        worker, client = self._worker, self._client
        receive = worker.socket.receive
        while True:
            message = await receive()
            if message.type in _DATA:
                try:
                    await client.send(message.data, message.type)
                except _ERRORS:
                    # ``_up`` notices, and knows how the client closed.
                    await asyncio.sleep(self._pace.patience_s)
                    return BROKEN
            elif not await worker.answer(message.type, message.data):
                if message.type is not WSMsgType.CLOSE or message.data in _WORKER_GOES:
                    return None
                return OVER if message.data in _NORMAL else message.data

    async def _reattached(self) -> bool:
        if self._attach_again is None:
            return False
        self._attached.clear()
        log.warning("the socket to a session's worker broke")
        await self._worker.close(LOST, _FAREWELL_S)
        try:
            async with asyncio.timeout(self._pace.attach_again_s):
                while True:
                    try:
                        socket = await self._attach_again()
                    except Unavailable:
                        await asyncio.sleep(_RETRY_S)
                    else:
                        break
        except (Gone, TimeoutError):
            return False
        self._worker = _Side(socket, self._clock)
        self._worker_stalls.clear()
        self._attached.set()
        return True

    async def _stop(self) -> tuple[int | None, int]:
        await self._stopping.wait()
        return RESTART, LOST

    async def _watch(self) -> tuple[int | None, int]:
        """Ping both sides; return when the client has stalled, and break a worker that has."""
        patience_s, next_ping = self._pace.patience_s, self._clock() + self._pace.ping_s
        while True:
            if self._clock() >= next_ping:
                next_ping += self._pace.ping_s
                self._client.ping()
                self._worker.ping()
            await asyncio.sleep(self._pace.ping_s / 4)
            client, worker = self._client, self._worker
            if not self._attached.is_set():
                client.excuse()
                worker.excuse()
                continue
            # While a write to one side waits, the pongs of the other side are not read.
            if worker.waits():
                client.excuse()
            if client.waits():
                worker.excuse()
            if client.stalled(patience_s):
                return TRY_LATER, LOST
            if worker.stalled(patience_s):
                log.warning("a session's worker does not read or answer")
                self._worker_stalls.set()

    async def _close(self, client_code: int | None, worker_code: int) -> None:
        stalled = client_code == TRY_LATER
        async with asyncio.TaskGroup() as group:
            group.create_task(self._worker.close(worker_code))
            if client_code is not None:
                # A client that does not read would not answer either.
                within_s = _FAREWELL_S if stalled else CLOSE_S
                group.create_task(self._client.close(client_code, within_s))
        if stalled and self._transport is not None:
            # What waits to be sent would keep the connection.
            self._transport.abort()
