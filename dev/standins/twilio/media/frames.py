"""WebSocket frames (RFC 6455) of a client, without I/O: text out, a server's bytes in."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dev.standins.twilio.errors import Fault
from dev.standins.twilio.media.messages import PROTOCOL_ERROR

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_LONGEST = 1 << 20
# A client must mask. The key protects proxies from crafted bytes; zero leaves them as they are,
# and so costs nothing.
_KEY = bytes(4)


@dataclass(frozen=True)
class Frame:
    opcode: int
    data: bytes


def encode(opcode: int, data: bytes) -> bytes:
    size = len(data)
    if size < 126:
        return struct.pack("!BB", 0x80 | opcode, 0x80 | size) + _KEY + data
    if size < 1 << 16:
        return struct.pack("!BBH", 0x80 | opcode, 0xFE, size) + _KEY + data
    return struct.pack("!BBQ", 0x80 | opcode, 0xFF, size) + _KEY + data


def close(code: int) -> bytes:
    return encode(CLOSE, struct.pack("!H", code))


class Decoder:
    """Turns the server's bytes into frames; a message in fragments becomes one frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._opcode = CONTINUATION

    def feed(self, data: bytes) -> list[Frame]:
        """Return the complete frames. Raises Fault 31924 for what RFC 6455 forbids a server."""
        self._buffer += data
        frames: list[Frame] = []
        while (frame := self._next()) is not None:
            frames.extend(self._joined(*frame))
        return frames

    def _next(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, size, begin = buffer[0], buffer[1], 2
        if first & 0x70 or size & 0x80:
            raise Fault(PROTOCOL_ERROR, "a masked frame, or reserved bits")
        if size >= 126:
            begin = 4 if size == 126 else 10
            if len(buffer) < begin:
                return None
            size = int.from_bytes(buffer[2:begin], "big")
        if size > _LONGEST:
            raise Fault(PROTOCOL_ERROR, f"a frame of {size} bytes")
        if len(buffer) < begin + size:
            return None
        data = bytes(buffer[begin : begin + size])
        del buffer[: begin + size]
        return bool(first & 0x80), first & 0x0F, data

    def _joined(self, final: bool, opcode: int, data: bytes) -> list[Frame]:
        if opcode in (CLOSE, PING, PONG):
            if not final or len(data) > 125:
                raise Fault(PROTOCOL_ERROR, "a control frame in fragments, or too long")
            return [Frame(opcode, data)]
        if opcode not in (CONTINUATION, TEXT, BINARY):
            raise Fault(PROTOCOL_ERROR, f"opcode {opcode}")
        if (opcode == CONTINUATION) != bool(self._parts):
            raise Fault(PROTOCOL_ERROR, "fragments out of order")
        self._opcode = opcode or self._opcode
        self._parts.append(data)
        if not final:
            return []
        whole = b"".join(self._parts)
        self._parts.clear()
        return [Frame(self._opcode, whole)]
