"""worker.streams.link: sending never waits, and a reader that stops is cut."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from worker.streams.link import Link

pytestmark = [pytest.mark.unit, pytest.mark.asyncio]


class Socket:
    """A WebSocket that notes what is sent. ``reading``: its reader takes it."""

    def __init__(self) -> None:
        self.sent: list[str | bytes | int] = []
        self.reading = asyncio.Event()
        self.reading.set()

    async def send_str(self, text: str) -> None:
        await self.reading.wait()
        self.sent.append(text)

    async def send_bytes(self, data: bytes) -> None:
        await self.reading.wait()
        self.sent.append(data)

    async def close(self, *, code: int, message: bytes) -> None:
        await self.reading.wait()
        self.sent.append(code)


class Transport(asyncio.WriteTransport):
    aborted = False

    def abort(self) -> None:
        self.aborted = True


def link(socket: Socket, transport: Transport, send_within_s: float = 5) -> Link:
    untyped: Any = socket
    return Link(untyped, transport, send_within_s=send_within_s)


async def test_frames_go_in_order_and_the_close_last() -> None:
    socket, transport = Socket(), Transport()
    sending = link(socket, transport)
    sending.send(["a", b"b"])
    sending.close(1000, "over")
    sending.close(1013, "too late")
    sending.send(["c"])
    await sending.run()
    assert socket.sent == ["a", b"b", 1000]
    assert not transport.aborted and not sending.open


async def test_a_reader_that_stops_is_cut() -> None:
    socket, transport = Socket(), Transport()
    socket.reading.clear()
    sending = link(socket, transport, send_within_s=0.01)
    sending.send(["a"])
    await asyncio.wait_for(sending.run(), 5)
    assert transport.aborted and not sending.open


async def test_little_is_kept_for_a_slow_reader() -> None:
    socket, transport = Socket(), Transport()
    sending = link(socket, transport)
    for _ in range(2000):
        sending.send(["frame"])
    assert not sending.open
    await sending.run()
    assert socket.sent == [1013]
