"""A client of our socket: it speaks and plays in real time, and keeps the server's events."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import numpy as np

from core.audio import Pcm, ulaw_decode, ulaw_encode
from core.streams.messages import LOST, Format, SocketAttach
from dev.speech import CALLER_VOICE, synthesize
from dev.standins.twilio import Heard, Said
from dev.standins.twilio.watch import Watch

Connect = Callable[[SocketAttach], Awaitable[aiohttp.ClientWebSocketResponse]]

_FRAME_S = 0.02
_ULAW = "audio/x-mulaw"


class SocketFarEnd:
    """``attach`` it first, and again after ``lose``. ``connect`` opens a socket as the gateway
    does. It plays what it gets in order and echoes marks, unless ``echoes`` is False."""

    def __init__(
        self,
        connect: Connect,
        token: str,
        *,
        input: Format | None = None,
        output: Format | None = None,
        echoes: bool = True,
    ) -> None:
        self.events: list[dict[str, Any]] = []
        """Everything that the server told, on all sockets."""
        self.heard = Heard()
        self.played_bytes = 0
        self.longest_queue_ms = 0.0
        self.cleared_ms: list[float] = []
        """When ``clear`` events came, on the clock of ``heard``."""
        self._connect = connect
        self._token = token
        self._input, self._output = input or Format(), output or Format()
        self._echoes = echoes
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._words: deque[bytes] = deque()
        self._said_ms = 0.0  # when the last frame of words was sent
        self._queue = bytearray()
        self._marks: deque[tuple[int, str]] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._watch = Watch()

    async def attach(self, *, resume: bool = False, last_seq: int = 0) -> None:
        attach = SocketAttach(
            token=self._token,
            input=self._input,
            output=self._output,
            resume_token="for-the-client",
            resume=resume,
            last_seq=last_seq,
        )
        self._socket = await self._connect(attach)
        self._queue.clear()
        self._marks.clear()
        self._tasks = [
            asyncio.create_task(self._read(self._socket), name="far end reads"),
            asyncio.create_task(self._keep_time(self._socket), name="far end plays"),
        ]

    @property
    def socket(self) -> aiohttp.ClientWebSocketResponse:
        assert self._socket is not None, "not attached"
        return self._socket

    # --- what a user does

    @property
    def rate(self) -> int:
        """The rate of what it says."""
        return self._input.sample_rate

    async def say(self, what: str | Pcm) -> Said:
        """Speak in real time, a text or samples at ``rate``; silence follows. Returns when the
        words have been sent, with their position on the clock of ``heard``."""
        pcm = synthesize(what, CALLER_VOICE, self.rate).pcm if isinstance(what, str) else what
        step = round(self.rate * _FRAME_S)
        whole = np.concatenate([pcm, np.zeros(-len(pcm) % step, np.int16)])
        self._words += [self._encoded(whole[at : at + step]) for at in range(0, len(whole), step)]
        await self._watch.until(lambda: None if self._words else True, len(whole) / step / 10 + 30)
        start_ms = self._said_ms - len(whole) * 1000 / self.rate
        return Said(start_ms, start_ms + len(pcm) * 1000 / self.rate)

    async def send(self, type: str, **fields: Any) -> None:
        await self.socket.send_str(json.dumps({"type": type, **fields}))

    async def lose(self) -> None:
        """Lose the connection; the gateway tells the worker so."""
        await self.close(LOST)

    async def close(self, code: int = 1000) -> None:
        self._stop()
        await self.socket.close(code=code)

    def stop_reading(self) -> None:
        """Go on sending only."""
        self._tasks[0].cancel()

    # --- what the server does

    def of(self, type: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == type]

    async def event(self, type: str, within_s: float = 15, **fields: Any) -> dict[str, Any]:
        """Wait for the first event of that type with these fields."""

        def found() -> dict[str, Any] | None:
            wanted = fields.items()
            return next((event for event in self.of(type) if wanted <= event.items()), None)

        try:
            return await self._watch.until(found, within_s)
        except TimeoutError:
            raise AssertionError(f"no {type} {fields}; got {self.events}") from None

    async def closed(self, within_s: float = 15) -> int | None:
        """Wait until the server has closed the socket; return the code."""
        await self._watch.until(lambda: self.socket.closed or None, within_s)
        return self.socket.close_code

    # --- real time

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                self._queue += message.data
                queued_ms = len(self._queue) / self._frame_bytes * _FRAME_S * 1000
                self.longest_queue_ms = max(self.longest_queue_ms, queued_ms)
                continue
            event = json.loads(message.data)
            self.events.append(event)
            if event["type"] == "mark":
                self._marks.append((self.played_bytes + len(self._queue), event["name"]))
            elif event["type"] == "clear":
                self.cleared_ms.append(self.heard.ms)
                self._queue.clear()
                self._marks.clear()
            self._watch.changed()
        self._watch.changed()

    async def _keep_time(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time()
        try:
            while not socket.closed:
                at += _FRAME_S
                await asyncio.sleep(max(0, at - loop.time()))
                await self._play_frame(socket)
                if self._words:
                    self._said_ms = self.heard.ms
                await socket.send_bytes(self._words.popleft() if self._words else self._silence)
                self._watch.changed()
        except ConnectionError:
            pass  # the socket was closed meanwhile

    async def _play_frame(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while self._marks and self._marks[0][0] <= self.played_bytes:
            _, name = self._marks.popleft()
            if self._echoes:
                await socket.send_str(json.dumps({"type": "mark", "name": name}))
        frame = bytes(self._queue[: self._frame_bytes])
        del self._queue[: self._frame_bytes]
        self.played_bytes += len(frame)
        self.heard.add(self._ulaw_8k(frame))

    @property
    def _frame_bytes(self) -> int:
        width = 1 if self._output.encoding == _ULAW else 2
        return round(self._output.sample_rate * _FRAME_S) * width

    @property
    def _silence(self) -> bytes:
        return self._encoded(np.zeros(round(self._input.sample_rate * _FRAME_S), np.int16))

    def _encoded(self, pcm: Pcm) -> bytes:
        return ulaw_encode(pcm) if self._input.encoding == _ULAW else pcm.tobytes()

    def _ulaw_8k(self, frame: bytes) -> bytes:
        pcm = ulaw_decode(frame) if self._output.encoding == _ULAW else np.frombuffer(frame, "<i2")
        every = self._output.sample_rate // 8000
        return ulaw_encode(pcm[::every].astype(np.int16))

    def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
