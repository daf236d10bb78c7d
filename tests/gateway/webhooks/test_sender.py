"""One attempt at an endpoint that is slow, silent, broken, endless or no web server at all."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.store.database import Database
from gateway.store.deliveries import Delivery
from gateway.store.webhooks import PROJECT
from tests.gateway.store.test_outbox import Rig

pytestmark = pytest.mark.store

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    database = await Database.open(f"sqlite:///{tmp_path}/test.db")
    yield Rig(database)
    await database.close()


@asynccontextmanager
async def behaving(behaviour: Behaviour) -> AsyncIterator[str]:
    """Serve TCP: read a request's head, then call ``behaviour``. Yields the server's URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await behaviour(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


async def attempted(rig: Rig, behaviour: Behaviour) -> Delivery:
    """Return the delivery after a single attempt with a timeout of one second."""
    async with behaving(behaviour) as url:
        await rig.hook(url, timeout_s=1)
        endpoint = await rig.webhooks.get("acme", PROJECT)
        assert endpoint is not None
        async with rig.sending() as sender, asyncio.timeout(20):
            added = await rig.outbox.add_leased(
                "acme", endpoint.id, None, "agent.message", "{}", sender.lease
            )
            done = await sender.send_now(added, endpoint)
    assert done is not None
    return done


async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def dripping(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK + b"Content-Length: 100000\r\n\r\n")
    while True:
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.05)


async def hanging_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    return None


async def cut_off(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK + b"Content-Length: 100\r\n\r\nhalf")
    await writer.drain()


async def no_http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await writer.drain()


async def huge_header(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK + b"X-Huge: ")
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (silent, "No answer within 1 s"),
        (dripping, "No answer within 1 s"),
        (hanging_up, "The connection broke"),
        (cut_off, "The connection broke"),
        (no_http, "The answer is not HTTP"),
        (huge_header, "The answer is not HTTP"),
    ],
)
async def test_costs_that_attempt_only(rig: Rig, behaviour: Behaviour, error: str) -> None:
    done = await attempted(rig, behaviour)
    assert (done.status, done.error, done.attempts) == ("failed", error, 1)


async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        await writer.drain()


async def bomb(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    body = gzip.compress(b"\0" * 10_000_000)
    head = f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(OK + head.encode() + body)
    await writer.drain()


@pytest.mark.parametrize("behaviour", [endless, bomb])
async def test_an_answer_too_long_is_left_after_its_beginning(
    rig: Rig, behaviour: Behaviour
) -> None:
    done = await attempted(rig, behaviour)
    assert (done.status, done.http_status) == ("success", 200)
    assert 0 < len(done.response_body or "") <= 1000
