"""An httpx transport for the mcp package: uses a guarded session, and limits bytes and requests.

Every failure is returned as a response with status 502, as a proxy would do: a response ends one
request, while an exception would end the whole session with the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import httpx2
from yarl import URL

from core.url_guard import AddressRefused, read_bounded

MAX_BYTES = 8 * 1024 * 1024
"""The total size of one server's responses in one call."""
MAX_REQUESTS = 2000
"""The most requests to one server in one call: some responses cause another request."""

_EVENTS = "text/event-stream"
# aiohttp writes these itself. Compressed responses are refused.
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "accept-encoding"})


class GuardedTransport(httpx2.AsyncBaseTransport):
    """``http`` is a guarded session (core.url_guard), which the caller closes."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self._bytes_left = MAX_BYTES
        self._requests_left = MAX_REQUESTS
        self.problem: str | None = None
        """The last request's failure, without the server's text; None if it succeeded."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.problem = None
        if self._requests_left <= 0 or self._bytes_left <= 0:
            return self._failed(request, "it took more than a call has for it")
        self._requests_left -= 1
        wait: dict[str, float | None] = request.extensions.get("timeout", {})
        try:
            response = await self._http.request(
                request.method,
                URL(str(request.url), encoded=True),
                data=await request.aread(),
                headers=[
                    *(
                        (name, value)
                        for name, value in request.headers.multi_items()
                        if name.lower() not in _OWN_HEADERS
                    ),
                    ("Accept-Encoding", "identity"),
                ],
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=wait.get("connect"), sock_read=wait.get("read")
                ),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return self._failed(request, _problem(error))
        try:
            return await self._answer(request, response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            response.close()
            return self._failed(request, _problem(error))
        except asyncio.CancelledError:
            response.close()
            raise

    async def _answer(
        self, request: httpx2.Request, response: aiohttp.ClientResponse
    ) -> httpx2.Response:
        if response.status >= 300:
            self.problem = f"HTTP {response.status}"
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            return self._failed(request, "its answer is compressed")
        headers = httpx2.Headers(response.raw_headers)
        if response.content_type == _EVENTS:
            stream = _Events(self, response)
            return httpx2.Response(response.status, headers=headers, stream=stream, request=request)
        limit = self._bytes_left
        body = await read_bounded(response, limit + 1)
        self._bytes_left -= len(body)
        if len(body) > limit:
            return self._failed(request, "its answer is too long")
        response.release()
        for name in ("Content-Length", "Transfer-Encoding"):
            headers.pop(name, None)
        return httpx2.Response(response.status, headers=headers, content=body, request=request)

    def take(self, count: int) -> bool:
        """Count received bytes; return False once they exceed the limit."""
        self._bytes_left -= count
        return self._bytes_left >= 0

    def _failed(self, request: httpx2.Request, problem: str) -> httpx2.Response:
        self.problem = problem
        return httpx2.Response(502, request=request)


class _Events(httpx2.AsyncByteStream):
    """A stream of server-sent events."""

    def __init__(self, transport: GuardedTransport, response: aiohttp.ClientResponse) -> None:
        self._transport = transport
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                if not self._transport.take(len(chunk)):
                    raise httpx2.ReadError("the events take more than a call has for them")
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.ReadError(_problem(error)) from None

    async def aclose(self) -> None:
        self._response.close()


def _problem(error: Exception) -> str:
    """Describe an error without its own text, which may name addresses in the internal network."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, AddressRefused
    ):
        return "its address is not public"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return "it could not be reached"
