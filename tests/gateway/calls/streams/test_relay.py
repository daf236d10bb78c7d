"""The relay between real sockets: a client's, and a worker's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from core.errors import Gone, Unavailable
from core.models import new_id
from core.streams.messages import LOST, TwilioAttach
from core.tasks.alongside import alongside
from core.tokens import TokenIssuer
from gateway.calls.streams.relay import Relay
from gateway.calls.streams.workers import Place, StreamWorkers, WorkerSocket
from gateway.http.pace import Pace
from gateway.http.sockets import open_socket
from tests.support.edge import served
from tests.support.inprocess import SECRET
from tests.support.stream_worker import StreamWorker, WorkerSession

pytestmark = pytest.mark.store

QUICK = Pace(ping_s=0.05, patience_s=0.3, attach_again_s=0.5)


class Line:
    """A gateway that relays one path to one worker."""

    def __init__(self, worker: StreamWorker, pace: Pace) -> None:
        self.worker = worker
        self.stopping = asyncio.Event()
        self.call_id = new_id("call")
        self.attach_again = True
        self.refusals: list[Exception] = []
        """Raised by the next attempts to attach again."""
        self.relayed = asyncio.Event()
        self.transport: asyncio.Transport | None = None
        self._pace = pace

    async def handle(self, request: web.Request) -> web.StreamResponse:
        client = await open_socket(request)
        self.transport = request.transport
        async with aiohttp.ClientSession() as http:
            store: Any = None
            workers = StreamWorkers(store, TokenIssuer(SECRET), http, "switchroom")

            async def attach(resume: bool) -> WorkerSocket:
                if resume and self.refusals:
                    raise self.refusals.pop(0)
                attach = TwilioAttach(token="t", stream_sid="MZ1", resume=resume)
                place = Place("w1", self.worker.url)
                return await workers.attach(place, self.call_id, attach)

            again = (lambda: attach(True)) if self.attach_again else None
            await Relay(
                client,
                await attach(False),
                transport=request.transport,
                stopping=self.stopping,
                attach_again=again,
                pace=self._pace,
            ).run()
        self.relayed.set()
        return client


class Client:
    """A client that reads all the time, as they do: so it answers pings."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.got = asyncio.Queue[aiohttp.WSMessage]()
        self.closed = asyncio.Event()

    async def read(self) -> None:
        async for message in self.socket:
            self.got.put_nowait(message)
        self.closed.set()

    async def next(self) -> Any:
        """Return the data of the next text or binary message."""
        async with asyncio.timeout(10):
            return (await self.got.get()).data

    async def close_code(self) -> int | None:
        async with asyncio.timeout(10):
            await self.closed.wait()
        return self.socket.close_code

    @property
    def transport(self) -> asyncio.Transport:
        connection = self.socket._response.connection
        assert connection is not None and isinstance(connection.transport, asyncio.Transport)
        return connection.transport


@dataclass(frozen=True)
class Ends:
    line: Line
    client: Client
    worker: StreamWorker
    session: WorkerSession

    async def heard(self) -> bytes:
        """Return the next payload that the worker gets."""
        async with asyncio.timeout(10):
            return await self.session.frames.get()

    async def worker_closed(self) -> int | None:
        async with asyncio.timeout(10):
            return await self.session.closes.get()


@asynccontextmanager
async def ends(
    pace: Pace = QUICK, *, attach_again: bool = True, **options: Any
) -> AsyncIterator[Ends]:
    async with StreamWorker("w1") as worker:
        line = Line(worker, pace)
        line.attach_again = attach_again
        app = web.Application()
        app.router.add_get("/", line.handle)
        async with served(app) as edge, edge.http.ws_connect("/", **options) as socket:
            client = Client(socket)
            async with alongside(client.read(), "client"):
                yield Ends(line, client, worker, await worker.session())


class TestPassing:
    async def test_frames_go_both_ways_as_they_are(self) -> None:
        async with ends() as both:
            await both.client.socket.send_str('{"event": "médiä", not JSON')
            assert await both.heard() == '{"event": "médiä", not JSON'.encode()
            await both.client.socket.send_bytes(bytes(range(256)))
            assert await both.heard() == bytes(range(256))
            await both.session.send("ünd".encode())
            assert await both.client.next() == "ünd"
            await both.session.send(b"\xff\x00", WSMsgType.BINARY)
            assert await both.client.next() == b"\xff\x00"

    async def test_no_frame_is_compressed(self) -> None:
        async with ends(compress=15) as both:
            assert both.client.socket.compress == 0
            assert both.session.socket is not None and not both.session.socket.compress

    async def test_pings_are_answered_and_not_passed_on(self) -> None:
        async with ends(autoping=False) as both:
            await both.client.socket.ping(b"are you there")
            async with asyncio.timeout(10):
                while (message := await both.client.got.get()).type is not WSMsgType.PONG:
                    assert message.type is WSMsgType.PING
            assert message.data == b"are you there"
            assert both.session.frames.empty()

    async def test_order_is_kept(self) -> None:
        async with ends() as both:
            for number in range(2000):
                await both.client.socket.send_str(str(number))
            assert [await both.heard() for _ in range(2000)] == [
                str(number).encode() for number in range(2000)
            ]


class TestEndings:
    @pytest.mark.parametrize(("code", "told"), [(1000, 1000), (1001, 1000), (4321, LOST)])
    async def test_the_client_closes(self, code: int, told: int) -> None:
        # aiohttp's client closes with 1000 if a ping comes in that moment.
        async with ends(Pace(ping_s=60, patience_s=60)) as both:
            await both.client.socket.close(code=code)
            assert await both.worker_closed() == told
            await both.line.relayed.wait()

    async def test_the_clients_socket_breaks(self) -> None:
        async with ends() as both:
            both.client.transport.abort()
            assert await both.worker_closed() == LOST

    @pytest.mark.parametrize("code", [1000, 1007, 1013, 4404])
    async def test_the_worker_closes(self, code: int) -> None:
        async with ends() as both:
            await both.session.close(code)
            assert await both.client.close_code() == code
            await both.line.relayed.wait()
            assert len(both.session.attaches) == 1

    async def test_the_gateway_stops(self) -> None:
        async with ends() as both:
            both.line.stopping.set()
            assert await both.client.close_code() == 1012
            assert await both.worker_closed() == LOST


class TestBrokenWorkers:
    @pytest.mark.parametrize("way", ["breaks", 1001, 1011, 1012])
    async def test_it_is_attached_again(self, way: object) -> None:
        async with ends() as both:
            if isinstance(way, int):
                await both.session.close(way)
            else:
                both.session.drop()
            await both.worker.session(2)
            await both.client.socket.send_str("still here")
            assert await both.heard() == b"still here"
            await both.session.send(b"so am I")
            assert await both.client.next() == "so am I"
            assert [attach["resume"] for attach in both.session.attaches] == [False, True]

    async def test_what_comes_meanwhile_is_not_lost(self) -> None:
        async with ends() as both:
            both.line.refusals = [Unavailable("full")]
            both.session.drop()
            for number in range(50):
                await both.client.socket.send_str(str(number))
                await asyncio.sleep(0)
            await both.worker.session(2)
            await both.client.socket.send_str("last")
            heard: list[bytes] = []
            while not heard or heard[-1] != b"last":
                heard.append(await both.heard())
            # Those that were sent before the break was noticed are lost with the socket.
            assert heard == [str(n).encode() for n in range(51 - len(heard), 50)] + [b"last"]

    async def test_its_session_is_gone(self) -> None:
        async with ends() as both:
            both.line.refusals = [Gone("gone")]
            both.session.drop()
            assert await both.client.close_code() == 1011

    async def test_it_does_not_come_back(self) -> None:
        async with ends() as both:
            both.line.refusals = [Unavailable("unreachable") for _ in range(1000)]
            both.session.drop()
            assert await both.client.close_code() == 1011

    async def test_without_another_try(self) -> None:
        async with ends(attach_again=False) as both:
            both.session.drop()
            assert await both.client.close_code() == 1011

    async def test_one_that_does_not_answer_pings_is_left(self) -> None:
        """A half-open connection: the machine is gone, and nothing says so."""
        async with ends() as both:
            both.worker.reading.clear()
            await both.client.socket.send_str("wakes the worker's reader, which stops then")
            await both.worker.session(2)
            assert len(both.session.attaches) == 2


class TestStalledClients:
    async def test_one_that_answers_no_ping_is_cut_off(self) -> None:
        async with ends(autoping=False) as both:
            assert await both.worker_closed() == LOST
            assert await both.client.close_code() == 1013
            assert (await both.client.got.get()).type is WSMsgType.PING

    async def test_it_may_send_all_the_while(self) -> None:
        async with ends(autoping=False) as both:
            async with asyncio.timeout(10):
                while not both.line.relayed.is_set():
                    try:
                        await both.client.socket.send_str("media")
                    except ConnectionError:
                        break
                    await asyncio.sleep(0.005)
            assert await both.worker_closed() == LOST

    async def test_one_that_reads_nothing_is_cut_off_with_little_in_memory(self) -> None:
        """The client answers pings, as far as it reads; the worker sends without end."""
        async with ends(Pace(ping_s=0.1, patience_s=1.0)) as both:
            both.client.transport.pause_reading()
            waiting, sent = 0, 0
            assert both.line.transport is not None

            async def talk() -> None:
                nonlocal sent
                while True:
                    await both.session.send(bytes(32 * 1024), WSMsgType.BINARY)
                    sent += 1
                    await asyncio.sleep(0)

            async with asyncio.timeout(20), alongside(talk(), "talk"):
                while not both.line.relayed.is_set():
                    waiting = max(waiting, both.line.transport.get_write_buffer_size())
                    await asyncio.sleep(0.001)
            assert sent > 10, "the client's buffers were not full"
            assert waiting <= 256 * 1024

    async def test_a_slow_worker_is_not_taken_for_a_stalled_client(self) -> None:
        """While frames wait for the worker, the client's pongs are not read."""
        async with ends() as both:
            both.worker.reading.clear()
            async with alongside(self.flood(both), "flood"):
                await both.worker.session(2)
                both.worker.reading.set()
                await both.session.send(b"hello")
                assert await both.client.next() == "hello"

    @staticmethod
    async def flood(both: Ends) -> None:
        while True:
            await both.client.socket.send_bytes(bytes(32 * 1024))
