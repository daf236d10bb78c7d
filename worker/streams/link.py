"""One WebSocket between the gateway and a session: the sending half."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable

import aiohttp
from aiohttp import web

from worker.streams.wire import Frame

log = logging.getLogger(__name__)

# The playout sends 300 ms ahead, so few frames wait. More wait only for a reader that has stopped.
_MOST_FRAMES = 500
_SEND_WITHIN_S = 4.0
_CLOSE_WITHIN_S = 4.0  # the socket itself waits 2 s for its peer's close frame


class Link:
    """Sends frames in order. ``send`` and ``close`` never wait; ``run`` does the work."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        transport: asyncio.BaseTransport | None,
        *,
        send_within_s: float = _SEND_WITHIN_S,
    ) -> None:
        """``transport`` is the socket's; it is cut if a frame is not sent in time."""
        self._socket = socket
        self._transport = transport
        self._send_within_s = send_within_s
        self._frames: deque[Frame] = deque()
        self._wake = asyncio.Event()
        self._closing: tuple[int, str] | None = None

    @property
    def open(self) -> bool:
        return self._closing is None

    def send(self, frames: Iterable[Frame]) -> None:
        if self._closing is None:
            self._frames.extend(frames)
            if len(self._frames) > _MOST_FRAMES:
                self._frames.clear()
                self.close(aiohttp.WSCloseCode.TRY_AGAIN_LATER, "the reader has stopped")
            self._wake.set()

    def close(self, code: int, reason: str) -> None:
        """Close after everything that was sent. The first call counts."""
        if self._closing is None:
            self._closing = code, reason
            self._wake.set()

    async def run(self) -> None:
        """Send until closed. A socket that breaks ends it, too."""
        try:
            while True:
                while self._frames:
                    async with asyncio.timeout(self._send_within_s):
                        await self._write(self._frames.popleft())
                if self._closing is not None:
                    break
                self._wake.clear()
                await self._wake.wait()
            code, reason = self._closing
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await self._socket.close(code=code, message=reason.encode())
        except TimeoutError:
            log.warning("socket cut: the reader has stopped")
            self._closing = self._closing or (aiohttp.WSCloseCode.TRY_AGAIN_LATER, "")
            if isinstance(self._transport, asyncio.WriteTransport):
                self._transport.abort()
        except (ConnectionError, RuntimeError) as error:
            log.info("socket lost", extra={"problem": type(error).__name__})

    async def _write(self, frame: Frame) -> None:
        if isinstance(frame, str):
            await self._socket.send_str(frame)
        else:
            await self._socket.send_bytes(frame)
