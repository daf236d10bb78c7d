"""The relay between real sockets: a client's, and a worker's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from core.errors import Gone, Unavailable
from core.models import new_id, now
from core.streams.messages import LEAVES, LOST, TAKEN_OVER, TwilioAttach
from core.tasks.alongside import alongside
from core.tokens import TokenIssuer
from gateway.calls.streams.agents import Loss, Overtaken
from gateway.calls.streams.relay import Relay, _Kept
from gateway.calls.streams.workers import Place, StreamWorkers, WorkerSocket
from gateway.http.pace import Pace
from gateway.http.sockets import open_socket
from tests.support.edge import served
from tests.support.inprocess import SECRET
from tests.support.stream_worker import StreamWorker, WorkerSession

pytestmark = pytest.mark.store

QUICK = Pace(ping_s=0.05, patience_s=0.3, worker_ping_s=0.05, worker_patience_s=0.3)


class Seat:
    """The agents of one session, all on one worker."""

    def __init__(self, line: Line, workers: StreamWorkers) -> None:
        self.epoch = 0
        self.socket: WorkerSocket
        self.losses: list[tuple[Loss, int]] = []
        """What ``next`` was told: the loss, and the client's last event."""
        self.seen_at = now()
        self.fails_with: Exception | None = None
        self.may_come = asyncio.Event()
        """Cleared: the next agent does not come."""
        self.may_come.set()
        self.another = asyncio.Event()
        """Set: another agent has the session."""
        self.client_left = False
        self._line = line
        self._workers = workers

    async def attach(self, *, resume: bool) -> WorkerSocket:
        attach = TwilioAttach(token="t", stream_sid="MZ1", resume=resume)
        place = Place("w1", self._line.worker.url)
        self.socket = await self._workers.attach(place, self._line.call_id, attach)
        return self.socket

    async def next(self, loss: Loss, seen_at: datetime, last_seq: int = 0) -> WorkerSocket:
        self.losses.append((loss, last_seq))
        self.seen_at = seen_at
        await self.may_come.wait()
        if self.fails_with is not None:
            raise self.fails_with
        self.epoch += loss == "overtaken"
        self.another.clear()
        return await self.attach(resume=True)

    async def overtaken(self) -> bool:
        return await self.another.wait()

    async def left(self) -> None:
        self.client_left = True


class Line:
    """A gateway that relays one path to one worker."""

    def __init__(self, worker: StreamWorker, pace: Pace) -> None:
        self.worker = worker
        self.stopping = asyncio.Event()
        self.call_id = new_id("call")
        self.seat: Seat
        self.relayed = asyncio.Event()
        self.transport: asyncio.Transport | None = None
        self._pace = pace

    async def handle(self, request: web.Request) -> web.StreamResponse:
        client = await open_socket(request)
        self.transport = request.transport
        async with aiohttp.ClientSession() as http:
            store: Any = None
            workers = StreamWorkers(store, TokenIssuer(SECRET), http, "switchroom")
            self.seat = Seat(self, workers)
            await self.seat.attach(resume=False)
            await Relay(
                client,
                self.seat,
                transport=request.transport,
                stopping=self.stopping,
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
async def ends(pace: Pace = QUICK, **options: Any) -> AsyncIterator[Ends]:
    async with StreamWorker("w1") as worker:
        line = Line(worker, pace)
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


class TestLostAgents:
    @pytest.mark.parametrize(
        ("way", "loss"),
        [
            ("breaks", "broke"),
            *((code, "broke") for code in (1001, 1011, 1012)),
            (LEAVES, "leaves"),
        ],
    )
    async def test_another_one_comes_and_the_client_stays(self, way: object, loss: Loss) -> None:
        async with ends() as both:
            await both.session.send(b'{"type":"state","seq":41}')
            assert await both.client.next() == '{"type":"state","seq":41}'
            if isinstance(way, int):
                await both.session.close(way)
            else:
                both.session.drop()
            await both.worker.session(2)
            await both.client.socket.send_str("still here")
            assert await both.heard() == b"still here"
            await both.session.send(b"so am I")
            assert await both.client.next() == "so am I"
            assert both.line.seat.losses == [(loss, 41)]
            assert abs(now() - both.line.seat.seen_at) < timedelta(seconds=5)

    async def test_what_comes_meanwhile_is_not_lost(self) -> None:
        async with ends() as both:
            both.line.seat.may_come.clear()
            both.session.drop()
            for number in range(50):
                await both.client.socket.send_str(str(number))
                await asyncio.sleep(0)
            both.line.seat.may_come.set()
            await both.worker.session(2)
            await both.client.socket.send_str("last")
            heard: list[bytes] = []
            while not heard or heard[-1] != b"last":
                heard.append(await both.heard())
            # Those that were sent before the break was noticed are lost with the socket.
            assert heard == [str(n).encode() for n in range(51 - len(heard), 50)] + [b"last"]

    def test_no_more_of_it_is_kept_than_can_be_of_use(self) -> None:
        """The oldest audio is dropped, and what was written is kept."""
        kept = _Kept()
        kept.add(b"written", WSMsgType.TEXT)
        for number in range(300):
            kept.add(bytes([number % 256]) * 1024, WSMsgType.BINARY)
        assert kept.pop() == (b"written", WSMsgType.TEXT)
        audio = []
        while kept:
            audio.append(kept.pop()[0])
        assert [frame[0] for frame in audio] == [n % 256 for n in range(173, 300)]
        for number in range(3):
            kept.add(bytes([number]) * 64 * 1024, WSMsgType.TEXT)
        assert [kept.pop()[0][0] for _ in range(2)] == [1, 2]
        assert not kept

    async def test_the_client_leaves_meanwhile(self) -> None:
        async with ends() as both:
            both.line.seat.may_come.clear()
            both.session.drop()
            await self.lost(both)
            await both.client.socket.close(code=1000)
            await both.line.relayed.wait()
            assert both.line.seat.client_left

    @pytest.mark.parametrize(
        ("way", "error", "told"),
        [
            ("breaks", Gone("over"), 4404),
            ("leaves", Gone("over"), 1000),
            ("breaks", Overtaken(), 4409),
            ("breaks", Unavailable("no database"), 1011),
        ],
    )
    async def test_none_comes(self, way: str, error: Exception, told: int) -> None:
        async with ends() as both:
            both.line.seat.fails_with = error
            if way == "leaves":
                await both.session.close(LEAVES)
            else:
                both.session.drop()
            assert await both.client.close_code() == told

    async def test_one_that_does_not_answer_pings_is_left(self) -> None:
        """A half-open connection, or a process that is frozen: nothing says so."""
        async with ends() as both:
            both.worker.reading.clear()
            await both.client.socket.send_str("wakes the worker's reader, which stops then")
            await both.worker.session(2)
            assert both.line.seat.losses == [("stalled", 0)]

    async def test_the_timeline_says_that_another_one_has_the_session(self) -> None:
        async with ends() as both:
            both.line.seat.another.set()
            assert await both.worker_closed() == TAKEN_OVER
            await both.worker.session(2)
            await both.client.socket.send_str("hello")
            assert await both.heard() == b"hello"

    async def test_a_gateway_that_was_frozen_blames_nobody(self) -> None:
        async with ends() as both:
            time.sleep(1.0)  # noqa: ASYNC251  as SIGSTOP does
            await both.client.socket.send_str("hello")
            assert await both.heard() == b"hello"
            assert both.line.seat.losses == []

    @staticmethod
    async def lost(both: Ends) -> None:
        async with asyncio.timeout(10):
            while not both.line.seat.losses:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


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
