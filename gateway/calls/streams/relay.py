"""Pass frames between a client's socket and its agent's socket on a worker, as they are.

    client's socket                        worker's socket
    closed with 1000, 1001 or no code   →  1000
    broken, or closed with another code →  4000 (LOST): the session waits for another socket
    stalled (no pong, no reads)         →  4000; the client gets 1013 and is cut off
    the gateway stops: client gets 1012 →  4000
    stays open: another socket instead  ←  broken, stalled, 1001, 1011, 1012, 4011 (LEAVES), or
                                           another agent is the session's (then 4009, TAKEN_OVER)
    the worker's code                   ←  closed with any other

An agent that is lost is replaced while the client's socket stays open (see .agents):
by itself on another socket to its worker, or by the next one on another worker. The client gets
4404 if the call is over then, 4409 if another socket of the session has taken over.

While an agent is there nothing is queued here: a side that does not read stops the other side's
reading. So memory is bounded by the sockets' buffers, and a side that stalls is noticed by its
missing pongs, or by a write that does not drain. While none is there, the client's last frames are
kept for the next one, 128 KiB at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Protocol

from aiohttp import ClientError, WSMsgType, web

from core.errors import Gone, Unavailable
from core.models import now
from core.streams.messages import GONE, LEAVES, LOST, REPLACED, TAKEN_OVER
from core.tasks.first_of import first_of
from gateway.calls.streams.agents import Loss, Overtaken
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
_FAREWELL_S = 0.2
_HURDLE_S = 0.5
"""If a look at the sockets is later than this, the gateway itself did not run: nobody stalled."""
_KEPT_BYTES: Final = 128 * 1024
"""The last 4 s of PCM. A new agent listens to the last 2 s."""


class Agent(Protocol):
    """The present agent's side; see gateway.calls.streams.agents.Seat."""

    socket: WorkerSocket

    @property
    def epoch(self) -> int: ...

    async def next(self, loss: Loss, seen_at: datetime, last_seq: int = 0) -> WorkerSocket: ...

    async def overtaken(self) -> bool: ...

    async def left(self) -> None: ...


class _Side:
    """One socket: when it was last known to be alive, and since when a write to it waits.

    ``heard_at`` is the time of its last pong, or whatever else shows that its far end lives.
    """

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


class _Kept:
    """The client's frames for the next agent: the last ones, and rather text than audio."""

    def __init__(self) -> None:
        self._frames: deque[tuple[bytes, WSMsgType]] = deque()
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._frames)

    def add(self, data: bytes, kind: WSMsgType) -> None:
        self._frames.append((data, kind))
        self._size += len(data)
        while self._size > _KEPT_BYTES:
            audio = (at for at, (_, kind) in enumerate(self._frames) if kind is WSMsgType.BINARY)
            oldest = next(audio, 0)
            self._size -= len(self._frames[oldest][0])
            del self._frames[oldest]

    def pop(self) -> tuple[bytes, WSMsgType]:
        data, kind = self._frames.popleft()
        self._size -= len(data)
        return data, kind


class Relay:
    """``run`` passes frames until the client's side ends or the call does, and closes both."""

    def __init__(
        self,
        client: Socket,
        agent: Agent,
        *,
        transport: asyncio.Transport | None,
        stopping: asyncio.Event,
        pace: Pace = USUAL,
    ) -> None:
        """``transport``: the client's."""
        self._clock = asyncio.get_running_loop().time
        self._client = _Side(client, self._clock)
        self._agent = agent
        self._worker = _Side(agent.socket, self._clock)
        self._transport = transport
        self._stopping = stopping
        self._pace = pace
        self._attached = asyncio.Event()
        self._attached.set()
        self._worker_stalls = asyncio.Event()
        self._kept = _Kept()
        self._last_text = b""
        self._farewells: set[asyncio.Task[None]] = set()

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
        if worker_code == OVER and client_code is None and not self._attached.is_set():
            # Nobody else reports it. If this fails, the reconciler ends the call.
            with contextlib.suppress(Unavailable):
                await self._agent.left()

    # Each of these returns the codes with which client and worker are to be closed.

    async def _up(self) -> tuple[int | None, int]:
        client = self._client
        receive = client.socket.receive
        while True:
            message = await receive()
            if message.type in _DATA:
                if not self._attached.is_set():
                    self._kept.add(message.data, message.type)
                    continue
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
            ended, stalls, _ = await first_of(
                self._from_worker(), self._worker_stalls.wait(), self._agent.overtaken()
            )
            if isinstance(ended, int):
                return ended, OVER
            loss: Loss = ended or ("stalled" if stalls else "overtaken")
            if (codes := await self._replaced(loss)) is not None:
                return codes

    async def _from_worker(self) -> int | Loss:
        """Pass the worker's frames on until it closes for the client, too: return its code.

        Else return how the agent was lost.
        """
        worker, client, clock = self._worker, self._client, self._clock
        receive = worker.socket.receive
        while True:
            message = await receive()
            worker.heard_at = clock()
            if message.type in _DATA:
                if message.type is WSMsgType.TEXT:
                    self._last_text = message.data
                try:
                    await client.send(message.data, message.type)
                except _ERRORS:
                    # ``_up`` notices, and knows how the client closed.
                    await asyncio.sleep(self._pace.patience_s)
                    return BROKEN
            elif not await worker.answer(message.type, message.data):
                if message.type is not WSMsgType.CLOSE or message.data in _WORKER_GOES:
                    return "broke"
                if message.data == LEAVES:
                    return "leaves"
                return OVER if message.data in _NORMAL else message.data

    async def _replaced(self, loss: Loss) -> tuple[int, int] | None:
        """Attach to the next agent, or to the same one again; else return the codes."""
        self._attached.clear()
        former, epoch = self._worker, self._agent.epoch
        seen_at = now() - timedelta(seconds=self._clock() - former.heard_at)
        log.warning("the agent of a session is lost", extra={"loss": loss, "epoch": epoch})
        try:
            socket = await self._agent.next(loss, seen_at, _seq_of(self._last_text))
        except Gone:
            # A worker that leaves may just not know that the call has ended.
            return OVER if loss == "leaves" else GONE, TAKEN_OVER
        except Overtaken:
            return REPLACED, TAKEN_OVER
        except Unavailable:
            return BROKEN, LOST
        self._worker = _Side(socket, self._clock)
        same = self._agent.epoch == epoch
        farewell = former.close(LOST if same else TAKEN_OVER, _FAREWELL_S)
        task = asyncio.create_task(farewell, name="farewell")
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)
        self._worker_stalls.clear()
        with contextlib.suppress(*_ERRORS):  # it broke at once, which ``_down`` notices
            while self._kept:
                await self._worker.send(*self._kept.pop())
        self._attached.set()
        return None

    async def _stop(self) -> tuple[int | None, int]:
        await self._stopping.wait()
        return RESTART, LOST

    async def _watch(self) -> tuple[int | None, int]:
        """Ping both sides; return when the client has stalled, and tell of a worker that has."""
        pace, clock, client = self._pace, self._clock, self._client
        look_s = min(pace.ping_s, pace.worker_ping_s) / 2
        next_ping = clock() + pace.ping_s
        next_worker_ping = clock()
        while True:
            if clock() >= next_ping:
                next_ping += pace.ping_s
                client.ping()
            asleep_at = clock()
            await asyncio.sleep(look_s)
            if clock() - asleep_at - look_s > _HURDLE_S:
                client.excuse()
                self._worker.excuse()
            worker = self._worker
            # While a write to one side waits, the pongs of the other side are not read.
            if worker.waits():
                client.excuse()
            if client.waits():
                worker.excuse()
            if client.stalled(pace.patience_s):
                return TRY_LATER, LOST
            if not self._attached.is_set():
                continue
            if worker.stalled(pace.worker_patience_s):
                self._worker_stalls.set()
            elif (quiet := clock()) >= next_worker_ping and (
                quiet - worker.heard_at >= pace.worker_ping_s
            ):
                next_worker_ping = quiet + pace.worker_ping_s
                worker.ping()

    async def _close(self, client_code: int | None, worker_code: int) -> None:
        stalled = client_code == TRY_LATER
        async with asyncio.TaskGroup() as group:
            group.create_task(self._worker.close(worker_code))
            if client_code is not None:
                # A client that does not read would not answer either.
                within_s = _FAREWELL_S if stalled else CLOSE_S
                group.create_task(self._client.close(client_code, within_s))
        await asyncio.gather(*self._farewells)
        if stalled and self._transport is not None:
            # What waits to be sent would keep the connection.
            self._transport.abort()


def _seq_of(text: bytes) -> int:
    """Return the number of an event for a client; 0 if it has none, as Twilio's messages."""
    try:
        event = json.loads(text)
    except ValueError:
        return 0
    seq = event.get("seq") if isinstance(event, dict) else None
    return seq if isinstance(seq, int) else 0
