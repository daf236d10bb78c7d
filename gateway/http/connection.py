"""HTTP below the application: the requests that aiohttp answers or awaits before routing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from core.errors import AppError, BadRequest, HeadersTooLarge, ServerFault
from gateway import _private
from gateway.http.errors import REQUEST_ID_HEADER, render, request_id

log = logging.getLogger(__name__)

HEADERS_DEADLINE_S = 10.0
"""Time from the first byte of a request (or from the connection) to the end of its headers."""
KEEP_ALIVE_S = 75.0


class Connection(web.RequestHandler):
    """Answers invalid HTTP in JSON, and drops clients that do not finish their headers in time."""

    __slots__ = ("_deadline", "_headers_deadline_s", "_when_lost")

    def __init__(
        self,
        manager: web.Server,
        *,
        headers_deadline_s: float = HEADERS_DEADLINE_S,
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._headers_deadline_s = headers_deadline_s
        self._deadline: asyncio.TimerHandle | None = None
        self._when_lost: set[Callable[[], None]] = set()

    @contextmanager
    def when_lost(self, do: Callable[[], None]) -> Iterator[None]:
        """Call ``do`` if the client disconnects within the block.

        A handler that waits for something else would not notice the disconnect.
        """
        self._when_lost.add(do)
        try:
            yield
        finally:
            self._when_lost.discard(do)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        before, _ = _private.requests_of(self)
        super().data_received(data)
        begun, in_progress = _private.requests_of(self)
        if begun != before or in_progress:
            self._disarm()
        elif self._deadline is None:
            self._arm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        for do in tuple(self._when_lost):
            do()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are not HTTP, and errors that a middleware has logged already.

        aiohttp's own response is text, and quotes the offending bytes.
        """
        if request.writer.output_size > 0:
            raise ConnectionResetError("the response has begun")
        error: AppError
        if status >= 500:
            log.error("request failed below the application", exc_info=exc)
            error = ServerFault("Internal error")
        elif isinstance(exc, LineTooLong):
            error = HeadersTooLarge("The request line or a header is too long")
        else:
            error = BadRequest("The request is not valid HTTP")
        response = render(error, request.path)
        response.headers[REQUEST_ID_HEADER] = request_id(request)
        response.force_close()
        return response

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._headers_deadline_s, self.force_close)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Runner(_private.Runner):
    """An AppRunner with Connection for connections."""

    def __init__(self, app: web.Application, **options: Any) -> None:
        # gateway.http.body decompresses bodies, since it knows the size limit.
        defaults = {"keepalive_timeout": KEEP_ALIVE_S, "auto_decompress": False}
        super().__init__(app, Connection, **{**defaults, **options})
