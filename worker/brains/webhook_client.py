"""The HTTP client of the webhook that answers a call's turns: one signed POST each, not repeated
on failure.

A fault of the other side costs that turn only. A response has a size limit and a deadline,
compressed ones are refused, redirects are not followed, and private addresses are refused. The
connection stays open between turns, so only the first turn would wait for the handshake;
``preconnect`` does that while the phone still rings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import aiohttp
from yarl import URL

from core.jobs import VoiceWebhook
from core.models import now
from core.url_guard import OpenSession
from core.webhooks.faults import problem, refusal
from core.webhooks.signing import signed_headers
from worker.brains.webhook_reply import MAX_BODY_BYTES, Reply, ReplyDecoder

log = logging.getLogger(__name__)

EVENT = "agent.message"

# Longer than people pause. If the server closes sooner, aiohttp notices before the next request.
_KEEP_ALIVE_S = 120.0
_PRECONNECT_WITHIN_S = 5.0
# After the reply's last object, mostly only the end of the body is left, and already received.
_DRAIN_BYTES, _DRAIN_WITHIN_S = 64 * 1024, 1.0
_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Type": "application/json",
        "Accept": "application/x-ndjson, application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "Switchroom-Webhooks/1",
    }
)


class WebhookFailed(Exception):
    """The turn's answer is missing or incomplete. The text is safe to show."""


@dataclass(slots=True)
class Exchange:
    """The state of one turn's POST so far. Times in ms count from its start."""

    started: float
    status: int | None = None
    first_reply_ms: int | None = None
    skipped: int = 0

    @classmethod
    def begin(cls) -> Exchange:
        return cls(time.perf_counter())

    @property
    def elapsed_ms(self) -> int:
        return round((time.perf_counter() - self.started) * 1000)


class WebhookClient:
    """One call's client of its endpoint. ``aclose`` it."""

    def __init__(self, endpoint: VoiceWebhook, open_http: OpenSession) -> None:
        self._endpoint = endpoint
        self._url = URL(endpoint.url)
        self._http = open_http(
            limit=4,
            keepalive_s=_KEEP_ALIVE_S,
            # aiohttp limits the size of lines and headers; this is the deadline of a whole turn.
            timeout=aiohttp.ClientTimeout(total=endpoint.timeout_s),
        )
        self._draining: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)
        await self._http.close()

    async def preconnect(self) -> None:
        """Open a connection, including TLS, without a request. A failure is only logged; the first
        turn reports it."""
        connector = self._http.connector
        assert connector is not None
        timeout = aiohttp.ClientTimeout(connect=_PRECONNECT_WITHIN_S)
        request = aiohttp.ClientRequest(
            "POST",
            self._url,
            loop=asyncio.get_running_loop(),
            session=self._http,
            response_class=aiohttp.ClientResponse,
        )
        try:
            async with asyncio.timeout(_PRECONNECT_WITHIN_S):
                connection = await connector.connect(request, [], timeout)
            connection.release()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            log.info("webhook not reached yet", extra={"error": type(error).__name__})

    async def replies(
        self, body: str, exchange: Exchange, message_id: str
    ) -> AsyncGenerator[Reply, None]:
        """POST a turn and yield its replies as they arrive, up to the one that ends the turn.

        ``message_id`` is the same if the next agent of the call posts the turn again.

        Closing the generator earlier aborts the request, which the server can see. Raises
        WebhookFailed.
        """
        try:
            response = await self._post(body, message_id)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WebhookFailed(problem(error, self._endpoint.timeout_s)) from None
        exchange.status = response.status
        finished = False
        try:
            if refused := refusal(response.status):
                raise WebhookFailed(refused)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise WebhookFailed("The answer is compressed")
            decoder = ReplyDecoder(response.content_type)
            async with contextlib.aclosing(self._decoded(response, decoder)) as found:
                async for reply in found:
                    exchange.skipped = decoder.skipped
                    if exchange.first_reply_ms is None:
                        exchange.first_reply_ms = exchange.elapsed_ms
                    if not reply.interim:
                        finished = True
                        # Before the yield: a consumer that has the last reply may not resume.
                        self._drain(response)
                    yield reply
                    if finished:
                        return
            finished = True
            exchange.skipped = decoder.skipped
        finally:
            if not finished:
                response.close()

    async def _post(self, body: str, message_id: str) -> aiohttp.ClientResponse:
        signed = signed_headers(
            self._endpoint.secret.get_secret_value(),
            message_id=message_id,
            event=EVENT,
            body=body,
            at=now(),
        )
        return await self._http.post(
            self._url, data=body.encode(), headers={**_HEADERS, **signed}, allow_redirects=False
        )

    async def _decoded(
        self, response: aiohttp.ClientResponse, decoder: ReplyDecoder
    ) -> AsyncGenerator[Reply, None]:
        received = 0
        try:
            async for data in response.content.iter_any():
                received += len(data)
                if received > MAX_BODY_BYTES:
                    raise WebhookFailed(f"The answer is longer than {MAX_BODY_BYTES // 1024} KiB")
                for reply in decoder.feed(data):
                    yield reply
        except TimeoutError:
            within = f"within {self._endpoint.timeout_s} s"
            raise WebhookFailed(f"The answer did not end {within}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WebhookFailed(problem(error, self._endpoint.timeout_s)) from None
        for reply in decoder.finish():
            yield reply

    def _drain(self, response: aiohttp.ClientResponse) -> None:
        """Read the rest of a short body, so that the next turn can reuse the connection."""
        task = asyncio.create_task(_read_rest(response), name="webhook rest")
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)


async def _read_rest(response: aiohttp.ClientResponse) -> None:
    left = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_WITHIN_S):
            async for data in response.content.iter_any():
                left -= len(data)
                if left < 0:
                    return
    except (aiohttp.ClientError, OSError, ValueError) as error:
        log.debug("webhook left", extra={"error": type(error).__name__})
    finally:
        # This has no effect if the response was read to its end.
        response.close()
