"""An HTTP client that uses little CPU, so that the server under test is the bottleneck.

It sends raw HTTP/1.1 over persistent connections, one request at a time on each.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_DEADLINE_S = 30.0  # after ``seconds``; not an expectation


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the last one is answered, until there are no more."""

    def __init__(self, next_request: Callable[[], bytes | None], statuses: Counter[int]) -> None:
        self._next = next_request
        self._statuses = statuses
        self._received = bytearray()
        self._transport: asyncio.Transport
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._received, 0, head + 2)
        if len(self._received) < head + 4 + (int(length[1]) if length else 0):
            return
        self._statuses[int(self._received[9:12])] += 1
        self._received.clear()
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def _send(self) -> None:
        request = self._next()
        if request is not None:
            self._transport.write(request)
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()


async def drive(
    host: str, port: int, make: Callable[[], bytes], *, connections: int, seconds: float
) -> tuple[float, Counter[int]]:
    """Send the requests of ``make`` for ``seconds``; return answers per second, and statuses.

    Raise ConnectionError, TimeoutError.
    """
    statuses: Counter[int] = Counter()
    began = time.perf_counter()
    end = began + seconds

    def next_request() -> bytes | None:
        return make() if time.perf_counter() < end else None

    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds + _DEADLINE_S):
        opened = [
            await loop.create_connection(lambda: _Connection(next_request, statuses), host, port)
            for _ in range(connections)
        ]
        await asyncio.gather(*(connection.done for _, connection in opened))
    return sum(statuses.values()) / (time.perf_counter() - began), statuses


def post(path: str, host: str, token: str, body: bytes) -> bytes:
    """Return the bytes of a POST of JSON with a bearer token."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
