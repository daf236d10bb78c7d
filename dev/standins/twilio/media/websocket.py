"""A WebSocket client whose connection can be stalled, frozen and torn.

It is written on asyncio's transport, since a client library answers pings, reads ahead and waits
for a slow peer on its own, and all of that has to be under the test's control here.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from dev.standins.twilio.errors import Fault
from dev.standins.twilio.media import frames
from dev.standins.twilio.media.messages import PROTOCOL_ERROR

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FULL = 64 * 1024
"""Bytes that wait for a peer that does not read, before messages are dropped."""
_LINGER_S = 1.0
HANDSHAKE_ERROR, CONNECTION_REFUSED, CONNECTION_TIMEOUT = 31920, 31902, 31901


@dataclass(frozen=True)
class Closed:
    """How a connection ended: the server's close code, None if it broke without a close frame."""

    code: int | None
    ours: bool = False
    """True if this end closed or tore it."""
    fault: Fault | None = None
    """The server's violation of the protocol, because of which this end closed it."""


class WebSocket(asyncio.Protocol):
    """An open connection, from ``connect``. ``closed`` is set when it has ended."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self.closed: asyncio.Future[Closed] = asyncio.get_running_loop().create_future()
        self.dropped = 0
        """Messages that were not sent because the peer does not read."""
        self._on_text = on_text
        self._head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._begun = bytearray()
        self._decoder = frames.Decoder()
        self._transport: asyncio.Transport | None = None
        self._frozen = False
        self._closing = False

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._head.done():
            self._begun += data
            head, end, data = bytes(self._begun).partition(b"\r\n\r\n")
            if not end:
                return
            self._head.set_result(head)
        try:
            for frame in self._decoder.feed(data):
                self._received(frame)
        except Fault as fault:
            self.refuse(fault)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._head.done():
            self._head.set_result(b"")
        self._end(Closed(None))

    # --- What the stream does

    def send(self, text: str) -> bool:
        """Send a message without waiting. Return False if it was dropped."""
        if self._frozen or self._closing or self._transport is None or self.closed.done():
            return False
        if self._transport.get_write_buffer_size() > _FULL:
            self.dropped += 1
            return False
        self._transport.write(frames.encode(frames.TEXT, text.encode()))
        return True

    async def close(self, code: int = 1000) -> None:
        """Close, and wait a second at most for the server to agree."""
        self._say_goodbye(code)
        if not self._frozen:
            self.resume_reading()
            await asyncio.wait([self.closed], timeout=_LINGER_S)
        self.abort()

    def refuse(self, fault: Fault) -> None:
        """Close because the server violated the protocol."""
        self._say_goodbye(1002)
        self._end(Closed(None, ours=True, fault=fault))

    def abort(self) -> None:
        """Tear the TCP connection, without a close frame."""
        if self._transport is not None:
            self._transport.abort()
        self._end(Closed(None, ours=True))

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._frozen:
            self._transport.resume_reading()

    def freeze(self) -> None:
        """Neither read nor send any more, and do not tell the server."""
        self._frozen = True
        self.pause_reading()

    # --- The handshake

    async def shake_hands(self, target: str, headers: Mapping[str, str]) -> None:
        """Upgrade the connection. Raises Fault 31920."""
        assert self._transport is not None
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {target} HTTP/1.1", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._transport.write("\r\n".join([*lines, "", ""]).encode())
        status, *fields = (await self._head).decode("latin-1").split("\r\n")
        answer = {
            name.strip().lower(): value.strip()
            for name, _, value in (field.partition(":") for field in fields)
        }
        accept = base64.b64encode(hashlib.sha1(f"{key}{_GUID}".encode()).digest()).decode()
        if " 101 " not in f"{status} " or answer.get("sec-websocket-accept") != accept:
            self.abort()
            raise Fault(HANDSHAKE_ERROR, f"the server answered {status!r}")

    # --- Inside

    def _received(self, frame: frames.Frame) -> None:
        if self._closing and frame.opcode != frames.CLOSE:
            return
        match frame.opcode:
            case frames.TEXT:
                try:
                    text = frame.data.decode()
                except UnicodeDecodeError:
                    raise Fault(PROTOCOL_ERROR, "not UTF-8") from None
                self._on_text(text)
            case frames.BINARY:
                raise Fault(PROTOCOL_ERROR, "a binary message")
            case frames.PING if self._transport is not None:
                self._transport.write(frames.encode(frames.PONG, frame.data))
            case frames.CLOSE:
                # 1005: a close frame without a code.
                code = int.from_bytes(frame.data[:2], "big") or 1005
                ours = self._closing
                self._say_goodbye(1000 if code == 1005 else code)
                self._end(Closed(code, ours=ours))

    def _say_goodbye(self, code: int) -> None:
        if self._transport is None or self._closing:
            return
        self._closing = True
        if not self._frozen:
            self._transport.write(frames.close(code))

    def _end(self, closed: Closed) -> None:
        if not self.closed.done():
            self.closed.set_result(closed)
        if self._transport is not None:
            self._transport.close()


async def connect(
    target: str,
    address: tuple[str, int],
    headers: Mapping[str, str],
    on_text: Callable[[str], None],
    *,
    timeout_s: float = 5.0,
) -> WebSocket:
    """Connect to a server. Raises Fault: refused 31902, no answer 31901, no upgrade 31920."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, socket = await loop.create_connection(lambda: WebSocket(on_text), *address)
            try:
                await socket.shake_hands(target, headers)
            except BaseException:
                socket.abort()
                raise
            return socket
    except TimeoutError:
        raise Fault(CONNECTION_TIMEOUT, "no answer from the server") from None
    except OSError as error:
        raise Fault(CONNECTION_REFUSED, str(error)) from None
