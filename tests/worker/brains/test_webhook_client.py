"""One turn's POST against real servers, good and bad ones: an error costs only that turn."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from agentphone import (  # type: ignore[import-untyped]
    WebhookVerificationError,
    construct_event,
    verify_webhook,
)
from aiohttp import web
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError as StandardError

from core.jobs import CallBrief, VoiceWebhook
from core.models import Agent, AgentConfig, now
from core.url_guard import guarded_session
from core.webhooks.signing import new_secret
from tests.support.receiver import Received, Receiver, counted, receiving, served
from worker.brains.webhook_client import Exchange, WebhookClient, WebhookFailed
from worker.brains.webhook_reply import MAX_BODY_BYTES
from worker.brains.webhook_turn import voice_turn
from worker.voice.keys import pressed

pytestmark = pytest.mark.unit

SECRET = new_secret()
NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


def endpoint(url: str, timeout_s: int = 20) -> VoiceWebhook:
    return VoiceWebhook(url=url, secret=SECRET, context_limit=10, timeout_s=timeout_s)


@asynccontextmanager
async def connected(
    url: str, *, timeout_s: int = 20, allow_private: bool = True
) -> AsyncIterator[WebhookClient]:
    client = WebhookClient(
        endpoint(url, timeout_s), partial(guarded_session, allow_private=allow_private)
    )
    try:
        yield client
    finally:
        await client.aclose()


async def texts(client: WebhookClient, exchange: Exchange | None = None) -> list[str | None]:
    found = client.replies("{}", exchange or Exchange.begin(), "msg_1")
    return [reply.text async for reply in found]


async def failure(client: WebhookClient) -> str:
    with pytest.raises(WebhookFailed) as failed:
        await texts(client)
    return str(failed.value)


def say(*chunks: dict[str, Any]) -> Callable[[Received], Awaitable[web.StreamResponse]]:
    async def answer(_received: Received) -> web.StreamResponse:
        return web.Response(body="\n".join(map(json.dumps, chunks)), headers=NDJSON)

    return answer


class TestSigned:
    async def test_both_verifiers_accept_a_turn_and_nothing_else(self, receiver: Receiver) -> None:
        receiver.answers["/"] = say({"text": "Yes."})
        brief = CallBrief(
            call_id="call_1",
            phone_number_id="num_1",
            direction="inbound",
            participant_identity="sip_1",
            from_number="+15550100",
            to_number="+15550101",
            metadata={},
            max_duration_ms=1_000,
            agent=Agent(id="agt_1", version=1, config=AgentConfig(name="Anna")),
        )
        id, body = voice_turn(brief, [pressed("12ü")], context_limit=10, at=now())
        async with connected(f"{receiver.url}/") as client:
            (reply,) = [reply async for reply in client.replies(body, Exchange.begin(), id)]
        assert reply.text == "Yes."
        (received,) = receiver.received
        signature = received.headers["X-Webhook-Signature"]
        timestamp = received.headers["X-Webhook-Timestamp"]
        event = construct_event(received.raw, signature, SECRET, timestamp)
        assert (event.event, event.data.transcript) == ("agent.message", "[The caller pressed 12ü]")
        assert Webhook(SECRET).verify(received.raw, received.headers)
        assert received.headers["X-Webhook-Event"] == "agent.message"
        altered = received.raw.replace(b"12", b"13")
        with pytest.raises(WebhookVerificationError):
            verify_webhook(altered, signature, SECRET, timestamp)
        with pytest.raises(StandardError):
            Webhook(SECRET).verify(altered, received.headers)
        old = str(int(timestamp) - 301)
        with pytest.raises(WebhookVerificationError):
            verify_webhook(received.raw, signature, SECRET, old)
        with pytest.raises(StandardError):
            Webhook(SECRET).verify(received.raw, {**received.headers, "webhook-timestamp": old})


class TestReplies:
    async def test_the_first_chunk_comes_before_the_second_is_sent(self) -> None:
        more = asyncio.Event()

        async def stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers=NDJSON)
            await response.prepare(request)
            await response.write(b'{"text": "One.", "interim": true}\n')
            await more.wait()
            await response.write(b'{"text": "Two."}\n')
            return response

        async with served(stream) as url, connected(url) as client:
            exchange = Exchange.begin()
            async with aclosing(client.replies("{}", exchange, "msg_1")) as replies:
                assert (await anext(replies)).text == "One."
                more.set()
                assert (await anext(replies)).text == "Two."
        assert exchange.status == 200
        assert exchange.first_reply_ms is not None

    async def test_a_final_chunk_closes_the_turn_and_the_end_of_the_stream_does(
        self, receiver: Receiver
    ) -> None:
        one, two = {"text": "1", "interim": True}, {"text": "2", "interim": True}
        receiver.answers["/final"] = say(one, {"text": "2"}, {"text": "3"})
        receiver.answers["/end"] = say(one, two)
        for path in ("/final", "/end"):
            async with connected(receiver.url + path) as client:
                assert await texts(client) == ["1", "2"]

    async def test_malformed_lines_are_counted(self, receiver: Receiver) -> None:
        async def answer(_received: Received) -> web.StreamResponse:
            return web.Response(body=b'oops\n{"text": "Yes."}\n', headers=NDJSON)

        receiver.answers["/"] = answer
        exchange = Exchange.begin()
        async with connected(f"{receiver.url}/") as client:
            assert await texts(client, exchange) == ["Yes."]
        assert exchange.skipped == 1


class TestConnection:
    async def test_turns_share_one_that_was_made_beforehand(self) -> None:
        async def single(_request: web.Request) -> web.StreamResponse:
            return web.json_response({"text": "Yes."})

        async def stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers=NDJSON)
            await response.prepare(request)
            await response.write(b'{"text": "One.", "interim": true}\n')
            await response.write(b'{"text": "Two."}\n{"text": "unheard"}\n')
            return response

        for handler, expected in ((single, ["Yes."]), (stream, ["One.", "Two."])):
            async with counted(handler) as (url, connections), connected(url) as client:
                await client.preconnect()
                for _ in range(5):
                    assert await texts(client) == expected
                    await asyncio.gather(*client._draining)
                assert connections() == 1

    async def test_leaving_early_is_seen_by_the_server(self) -> None:
        gone = asyncio.Event()

        async def endless(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers=NDJSON)
            await response.prepare(request)
            try:
                while True:
                    await response.write(b'{"text": "Well,", "interim": true}\n')
                    await asyncio.sleep(0.01)
            except (ConnectionError, asyncio.CancelledError):
                gone.set()
                raise

        async with served(endless) as url, connected(url) as client:
            async with aclosing(client.replies("{}", Exchange.begin(), "msg_1")) as replies:
                await anext(replies)
            async with asyncio.timeout(10):
                await gone.wait()

    async def test_a_turn_that_is_cancelled_before_the_answer(self) -> None:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def silent(_request: web.Request) -> web.StreamResponse:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()
            raise AssertionError("unreachable")

        async with served(silent) as url, connected(url) as client:
            turn = asyncio.create_task(texts(client))
            await asked.wait()
            turn.cancel()
            async with asyncio.timeout(10):
                await gone.wait()

    async def test_an_endpoint_that_is_away_fails_only_when_asked(self) -> None:
        async with connected("http://127.0.0.1:9/") as client:
            await client.preconnect()
            assert await failure(client) == "No connection"


class TestBadServers:
    """The turn fails with a reason in our own words, and the next turn works."""

    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            (302, "Redirects are not followed"),
            (401, "The endpoint refused it"),
            (500, "The endpoint failed"),
        ],
    )
    async def test_status(self, receiver: Receiver, status: int, reason: str) -> None:
        async def answer(_received: Received) -> web.StreamResponse:
            return web.Response(status=status, headers={"Location": f"{receiver.url}/elsewhere"})

        receiver.answers["/"] = answer
        async with connected(f"{receiver.url}/") as client:
            assert await failure(client) == reason
            receiver.answers["/"] = say({"text": "Yes."})
            assert await texts(client) == ["Yes."]
        assert receiver.at("/elsewhere") == []

    @pytest.mark.parametrize("body", [b"", b"[]", b"null", b"<html>", b'{"status": "ok"}', b"\xff"])
    async def test_no_reply_is_silence(self, receiver: Receiver, body: bytes) -> None:
        async def answer(_received: Received) -> web.StreamResponse:
            return web.Response(body=body, content_type="application/json")

        receiver.answers["/"] = answer
        async with connected(f"{receiver.url}/") as client:
            assert await texts(client) == []

    async def test_compressed(self, receiver: Receiver) -> None:
        bomb = gzip.compress(b'{"text": "' + b" " * 10_000_000 + b'"}')

        async def answer(received: Received) -> web.StreamResponse:
            assert received.headers["Accept-Encoding"] == "identity"
            return web.Response(body=bomb, headers={**NDJSON, "Content-Encoding": "gzip"})

        receiver.answers["/"] = answer
        async with connected(f"{receiver.url}/") as client:
            assert await failure(client) == "The answer is compressed"

    @pytest.mark.parametrize("line", [b"x" * 1_000, b'{"interim": true}\n', b"\n" * 100])
    async def test_huge_or_never_ending(self, line: bytes) -> None:
        sent = 0

        async def endless(request: web.Request) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse(headers=NDJSON)
            await response.prepare(request)
            while True:
                await response.write(line)
                sent += len(line)

        async with served(endless) as url, connected(url) as client:
            assert await failure(client) == "The answer is longer than 256 KiB"
        # What was read, plus what was in the sockets' buffers.
        assert sent < MAX_BODY_BYTES + 20_000_000

    @pytest.mark.parametrize("dribble", [b"", b" ", b"\n", b'{"text": "x", "interim": true}\n'])
    async def test_silent_or_dribbling(self, dribble: bytes) -> None:
        async def slow(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers=NDJSON)
            if dribble:
                await response.prepare(request)
            while True:
                if dribble:
                    await response.write(dribble)
                await asyncio.sleep(0.05)

        async with served(slow) as url, connected(url, timeout_s=1) as client:
            reason = "The answer did not end within 1 s" if dribble else "No answer within 1 s"
            assert await failure(client) == reason

    async def test_broken_off(self) -> None:
        async def broken(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers=NDJSON)
            await response.prepare(request)
            await response.write(b'{"text": "One.", "interim": true}\n{"te')
            assert request.transport is not None
            request.transport.abort()
            return response

        async with served(broken) as url, connected(url) as client:
            heard = []
            with pytest.raises(WebhookFailed, match="The connection broke"):
                async for reply in client.replies("{}", Exchange.begin(), "msg_1"):
                    heard.append(reply.text)
            # A reset may overtake what was sent before it.
            assert heard in ([], ["One."])

    async def test_no_http(self) -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example.com ESMTP\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, connected(f"http://127.0.0.1:{port}/") as client:
            assert await failure(client) in ("The answer is not HTTP", "The connection broke")

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]"])
    async def test_a_private_address(self, receiver: Receiver, host: str) -> None:
        port = receiver.url.rpartition(":")[2]
        async with connected(f"http://{host}:{port}/", allow_private=False) as client:
            await client.preconnect()
            assert await failure(client) == "The address is not public"
        assert receiver.received == []

    async def test_the_deadline_is_one_for_the_whole_turn(self) -> None:
        async def slow(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers=NDJSON)
            await response.prepare(request)
            await response.write(b'{"text": "One.", "interim": true}\n')
            await asyncio.Event().wait()
            return response

        async with served(slow) as url, connected(url, timeout_s=1) as client:
            began, heard = time.monotonic(), []
            with pytest.raises(WebhookFailed, match="The answer did not end within 1 s"):
                async for reply in client.replies("{}", Exchange.begin(), "msg_1"):
                    heard.append(reply.text)
            assert heard == ["One."]
            assert time.monotonic() - began >= 0.9
