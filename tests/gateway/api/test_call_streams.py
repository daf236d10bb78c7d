"""Event streams and long polls end with their token, cost nothing while idle, and are limited."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from time import time
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web

from core.errors import TooManyRequests
from core.models import CallEvent
from core.tasks.alongside import alongside
from gateway.api import call_streams
from gateway.calls.timeline import Timeline
from gateway.http.pace import Pace
from gateway.http.streams import StreamLimit
from gateway.keys import DATABASE, STREAMS, TIMELINE
from gateway.store.calls import Store
from tests.conftest import ACME, JWT_SECRET, RIVAL, bearer
from tests.gateway.api.test_calls import fetch, listening, over, types
from tests.support.inprocess import Running, running, settings_in

pytestmark = pytest.mark.store
attack = pytest.mark.attack


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_in(tmp_path, max_streams=3)) as started:
        yield started


def short_lived(seconds: float = 1) -> dict[str, str]:
    claims = {"sub": "acme", "exp": int(time() + 0.5) + seconds}
    return bearer(jwt.encode(claims, JWT_SECRET, algorithm="HS256"))


@attack
@pytest.mark.parametrize(
    ("what", "before"), [("events", ["call.queued"]), ("transcript/stream", ["connected"])]
)
async def test_a_stream_ends_with_its_token(gateway: Running, what: str, before: list[str]) -> None:
    call = await gateway.call()
    async with (
        asyncio.timeout(20),
        gateway.http.get(f"/v1/calls/{call.id}/{what}", headers=short_lived()) as response,
    ):
        text = await response.text()
    assert types(text) == [*before, "expired"]
    assert '"code": "TOKEN_EXPIRED"' in text
    await listening(gateway, call.id, 0)
    again, body = await fetch(gateway, f"/v1/calls/{call.id}", short_lived(-1))
    assert (again, body["error"]["code"]) == (401, "UNAUTHORIZED")


@attack
async def test_a_long_poll_ends_with_its_token(gateway: Running) -> None:
    call = await gateway.call()
    async with asyncio.timeout(20):
        path = f"/v1/calls/{call.id}"
        status, body = await fetch(gateway, path, short_lived(), wait="true", timeout="600")
    assert (status, body["status"]) == (200, "queued")


@attack
async def test_a_reader_that_does_not_read_does_not_outlive_its_token(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expired: list[asyncio.Transport | None] = []
    say = call_streams._say_expired

    async def watched(request: web.Request, stream: web.StreamResponse) -> None:
        expired.append(request.transport)
        await say(request, stream)

    monkeypatch.setattr(call_streams, "_say_expired", watched)
    call = await gateway.call()
    big = [CallEvent(type="noise", data={"x": "y" * 200_000}) for _ in range(60)]
    await gateway.store.append(call.id, big, "worker")
    port = gateway.http._base_url.port  # type: ignore[union-attr]
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", port))
        token = short_lived()["Authorization"]
        head = f"GET /v1/calls/{call.id}/events HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\n"
        await loop.sock_sendall(client, f"{head}\r\n".encode())
        await listening(gateway, call.id, 1)
        await listening(gateway, call.id, 0)
        async with asyncio.timeout(10):
            while gateway.app[STREAMS]._held:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        transport = expired[0]
        assert transport is not None and transport.is_closing()
        assert transport.get_write_buffer_size() == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_stream_with_an_api_secret_has_no_end_of_its_own(tmp_path: Path) -> None:
    pace = Pace(heartbeat_s=0.05)
    async with asyncio.timeout(10), running(settings_in(tmp_path), pace=pace) as gateway:
        call = await gateway.call()
        async with gateway.http.get(f"/v1/calls/{call.id}/events", headers=ACME) as response:
            for _ in range(3):
                assert await response.content.readuntil(b": heartbeat\n\n")


class Counting:
    """Counts the reads of calls and events from now on."""

    def __init__(self, gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: Counter[str] = Counter()
        self._polled = asyncio.Condition()
        for name in ("call", "events", "events_since"):
            monkeypatch.setattr(gateway.store, name, self._counted(name, gateway))

    def _counted(self, name: str, gateway: Running) -> Any:
        method = getattr(gateway.store, name)

        async def counted(*args: Any, **named: Any) -> Any:
            self.asked[name] += 1
            try:
                return await method(*args, **named)
            finally:
                async with self._polled:
                    self._polled.notify_all()

        return counted

    async def until_polled(self, times: int) -> None:
        wanted = self.asked["events_since"] + times
        async with asyncio.timeout(20), self._polled:
            await self._polled.wait_for(lambda: self.asked["events_since"] >= wanted)


def polling(gateway: Running) -> AbstractAsyncContextManager[None]:
    """Have the gateway poll for events every 10 ms as well."""
    return alongside(gateway.app[TIMELINE].run(asyncio.Event(), poll_s=0.01), "more news")


@attack
async def test_idle_streams_ask_nothing_of_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle streams cost only the poll for new events, which all of them share."""
    async with (
        running(settings_in(tmp_path)) as gateway,
        polling(gateway),
        AsyncExitStack() as open_,
    ):
        calls = [await gateway.call() for _ in range(20)]
        for call in calls:
            for what in ("events", "transcript/stream"):
                path = f"/v1/calls/{call.id}/{what}"
                response = await open_.enter_async_context(gateway.http.get(path, headers=ACME))
                assert response.status == 200
        for call in calls:
            await listening(gateway, call.id, 2)
        counting = Counting(gateway, monkeypatch)
        await counting.until_polled(2)  # by then, new streams have had their first look
        counting.asked.clear()
        await counting.until_polled(20)
        assert counting.asked["call"] == counting.asked["events"] == 0


@attack
async def test_a_client_that_hangs_up_is_noticed_though_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings_in(tmp_path)) as gateway, polling(gateway):
        call = await gateway.call()
        response = await gateway.http.get(f"/v1/calls/{call.id}/events", headers=ACME)
        await listening(gateway, call.id, 1)
        counting = Counting(gateway, monkeypatch)
        await counting.until_polled(3)  # nothing wakes the stream from now on
        response.close()
        await listening(gateway, call.id, 0)


@attack
async def test_listeners_of_one_call_share_one_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        call = await gateway.call()
        path = f"/v1/calls/{call.id}/events"

        async def read() -> str:
            async with gateway.http.get(path, headers=ACME) as response:
                return await response.text()

        readers = [asyncio.create_task(read()) for _ in range(30)]
        await listening(gateway, call.id, 30)
        timeline = gateway.app[TIMELINE]
        await timeline.append(call.id, [CallEvent(type="call.ringing")], "gateway")
        counting = Counting(gateway, monkeypatch)
        await timeline.append(call.id, [over()], "gateway")
        wanted = ["call.queued", "call.ringing", "call.ended", "ended"]
        assert [types(text) for text in await asyncio.gather(*readers)] == [wanted] * 30
        assert counting.asked["call"] <= 3


@attack
async def test_a_tenant_has_so_many_and_no_more(gateway: Running) -> None:
    call, theirs = await gateway.call(), await gateway.call(auth_id="rival")
    path = f"/v1/calls/{call.id}"
    held: list[aiohttp.ClientResponse] = [
        await gateway.http.get(f"{path}/events", headers=ACME),
        await gateway.http.get(f"{path}/transcript/stream", headers=ACME),
    ]
    poll = asyncio.create_task(fetch(gateway, path, ACME, wait="true", timeout="600"))
    await listening(gateway, call.id, 3)
    for more in (f"{path}/events", f"{path}/transcript/stream", f"{path}?wait=true"):
        async with gateway.http.get(more, headers=ACME) as response:
            assert response.status == 429
            assert int(response.headers["Retry-After"]) > 0
            assert (await response.json())["error"]["code"] == "STREAM_LIMIT"
    assert (await fetch(gateway, path))[0] == 200
    async with gateway.http.get(f"/v1/calls/{theirs.id}/events", headers=RIVAL) as response:
        assert response.status == 200
    for response in held:
        response.close()
    await listening(gateway, call.id, 1)
    async with gateway.http.get(f"{path}/events", headers=ACME) as response:
        assert response.status == 200
    poll.cancel()
    await listening(gateway, call.id, 0)
    assert not gateway.app[STREAMS]._held


def test_places_are_given_back_whatever_happens() -> None:
    limit = StreamLimit(1)
    for _ in range(3):
        with pytest.raises(RuntimeError), limit.one("a"):
            with pytest.raises(TooManyRequests), limit.one("a"):
                pass
            with limit.one(None):
                raise RuntimeError
    assert not limit._held


async def test_an_odd_error_does_not_end_the_news(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call, other = await gateway.call(), Store(gateway.app[DATABASE])
    timeline, stopping = Timeline(gateway.store), asyncio.Event()
    read, errors = timeline._tail.read, [RuntimeError("odd"), TimeoutError(), KeyError("odd")]

    async def read_at_last() -> set[str]:
        if errors:
            raise errors.pop()
        return await read()

    monkeypatch.setattr(timeline._tail, "read", read_at_last)
    async with (
        alongside(timeline.run(stopping, poll_s=0.01), "news"),
        timeline.listen(call.id) as news,
    ):
        assert await news.wait(5), "of the call's first event"
        await other.append(call.id, [CallEvent(type="call.ringing")], "gateway")
        assert await news.wait(5)
        stopping.set()
        assert await news.wait(5)
    assert len([record for record in caplog.records if record.exc_info]) == 3
