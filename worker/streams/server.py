"""The stream worker: serves sessions on WebSockets up to its capacity, and drains."""

from __future__ import annotations

import asyncio
import logging
import signal
from http import HTTPStatus

import aiohttp
from aiohttp import web
from openai import AsyncClient
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import TypeAdapter, ValidationError

import worker.preload  # noqa: F401  a session must not wait for imports
from core.jobs import Heartbeat
from core.models import new_id
from core.process_metrics import watch_process
from core.recordings.command import Command
from core.settings import Settings
from core.streams.messages import GONE, GRACE_S, LEAVES, Attach
from core.tokens import InvalidToken, TokenIssuer
from recordings.spool_metrics import SpoolCollector
from recordings.stores import Stores
from recordings.upload import sweep_at_the_end, sweep_recordings
from worker.link.client import Gateway
from worker.link.recordings import RecordingReport
from worker.link.reporter import sweep_forever
from worker.presence import Presence
from worker.pulse.standstill import Standstill
from worker.streams.session import StreamSession
from worker.voice.providers import build_llm_client

log = logging.getLogger(__name__)

_ATTACH: TypeAdapter[Attach] = TypeAdapter(Attach)
_ATTACH_WITHIN_S = 5.0
_MAX_FRAME = 64 * 1024
# A call ends within seconds; this is for one that hangs.
_END_WITHIN_S = 20.0


class StreamServer:
    """The sessions of one process, and its HTTP endpoints. ``drain`` it, then ``aclose``."""

    def __init__(
        self,
        settings: Settings,
        *,
        gateway: Gateway,
        tokens: TokenIssuer,
        llm_client: AsyncClient,
        grace_s: float = GRACE_S,
    ) -> None:
        """``grace_s``: how long a session waits for another socket."""
        self._grace_s = grace_s
        self._settings = settings
        self._gateway = gateway
        self._tokens = tokens
        self._llm_client = llm_client
        self._capacity = settings.streams_max_sessions
        self._sessions: dict[str, StreamSession] = {}
        self._arriving: set[str] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._known = False
        self._standstill = Standstill()
        self.id = new_id("wrk")
        self.draining = False
        self.address = ""
        registry = self._registry = CollectorRegistry()
        watch_process(registry)
        registry.register(SpoolCollector(settings.data_dir / "spool" / "recordings"))
        Gauge("switchroom_stream_capacity", "Sessions this worker takes.", registry=registry).set(
            self._capacity
        )
        active = Gauge("switchroom_stream_sessions", "Sessions in progress.", registry=registry)
        active.set_function(lambda: len(self._sessions))
        self._attached = Counter(
            "switchroom_stream_sockets", "Sockets by outcome.", ["outcome"], registry=registry
        )
        for outcome in ("new", "resumed", "full", "gone", "unauthorized"):
            self._attached.labels(outcome)  # 0, so that a rate can be told from the first one on

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/sessions/{id}", self._session),
                web.delete("/sessions/{id}", self._remove),
                web.post("/sessions/{id}", self._command),
                web.get("/healthz", self._healthy),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )
        return app

    def start(self) -> None:
        """Watch whether the process stands still."""
        self._standstill.start()

    def heartbeat(self) -> Heartbeat:
        return Heartbeat(
            worker_id=self.id,
            agent_name=self._settings.agent_name,
            capacity=self._capacity,
            active=len(self._sessions),
            draining=self.draining,
            address=self.address,
        )

    async def drain(self, timeout: float) -> None:
        """Take no new session, and wait for those in progress; after ``timeout``, cut them."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            log.warning(
                "sessions cut: the drain took too long", extra={"count": len(self._running)}
            )

    async def aclose(self) -> None:
        """End what is still in progress. Bounded."""
        self._standstill.stop()
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=_END_WITHIN_S)

    # --- endpoints

    async def _session(self, request: web.Request) -> web.StreamResponse:
        call_id = self._authorized(request)
        session = self._sessions.get(call_id)
        if session is not None and request.query.get("epoch", str(session.epoch)) != str(
            session.epoch
        ):
            session = None  # another agent of the call is asked for
        if "upgrade" not in request.headers.get("Connection", "").lower():
            return web.Response(status=HTTPStatus.OK if session else HTTPStatus.NOT_FOUND)
        if session is None and request.query.get("resume") == "true":
            raise self._refused(web.HTTPNotFound(), "gone")
        if session is None and self._full:
            raise self._refused(web.HTTPServiceUnavailable(), "full")
        self._arriving.add(call_id)  # holds a place until the session begins
        try:
            socket, attach = await self._attached_to(request)
        finally:
            self._arriving.discard(call_id)
        if attach is None:
            return socket
        session = self._sessions.get(call_id)
        if session is not None and session.epoch < attach.epoch:
            session.taken_over()
            session = None
        if (session is None and attach.resume) or (session and session.epoch > attach.epoch):
            self._refused(web.HTTPNotFound(), "gone")
            await socket.close(code=GONE)
            return socket
        if session is None and self.draining:  # since the handshake
            self._refused(web.HTTPServiceUnavailable(), "full")
            await socket.close(code=LEAVES)
            return socket
        session = session or self._begin(call_id, attach)
        self._attached.labels("resumed" if attach.resume else "new").inc()
        await session.serve(socket, request.transport, attach)
        return socket

    async def _attached_to(
        self, request: web.Request
    ) -> tuple[web.WebSocketResponse, Attach | None]:
        """Open the socket and read its first message; None: it is closed, there was none."""
        socket = web.WebSocketResponse(max_msg_size=_MAX_FRAME, compress=False, timeout=2.0)
        await socket.prepare(request)
        try:
            attach = _ATTACH.validate_json(await socket.receive_str(timeout=_ATTACH_WITHIN_S))
        except (ValidationError, TypeError, TimeoutError) as error:
            log.error("a socket without an attach", extra={"problem": type(error).__name__})
            await socket.close(code=aiohttp.WSCloseCode.PROTOCOL_ERROR)
            return socket, None
        return socket, attach

    async def _remove(self, request: web.Request) -> web.Response:
        session = self._sessions.get(self._authorized(request))
        if session is None:
            raise web.HTTPNotFound
        session.remove("by the API")
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _command(self, request: web.Request) -> web.Response:
        session = self._sessions.get(self._authorized(request))
        try:
            command = Command.model_validate_json(await request.read())
        except ValidationError:
            raise web.HTTPBadRequest from None
        if session is None or not session.commanded(command):
            raise web.HTTPNotFound
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, _: web.Request) -> web.Response:
        ready = not self.draining and self._known
        body = {"ready": ready, "draining": self.draining, "sessions": len(self._sessions)}
        return web.json_response({**body, "capacity": self._capacity}, status=200 if ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = await asyncio.to_thread(generate_latest, self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def known(self, known: bool) -> None:
        """Note whether the gateway takes this worker's heartbeats."""
        self._known = known

    @property
    def _full(self) -> bool:
        places = len(self._sessions.keys() | self._arriving)
        return self.draining or places >= self._capacity

    def _authorized(self, request: web.Request) -> str:
        call_id = request.match_info["id"]
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            if (
                scheme.lower() != "bearer"
                or self._tokens.verify(token, "switchroom:stream") != call_id
            ):
                raise InvalidToken("another session's")
        except InvalidToken:
            raise self._refused(web.HTTPUnauthorized(), "unauthorized") from None
        return call_id

    def _refused(self, error: web.HTTPException, outcome: str) -> web.HTTPException:
        self._attached.labels(outcome).inc()
        return error

    def _begin(self, call_id: str, attach: Attach) -> StreamSession:
        session = self._sessions[call_id] = StreamSession(
            call_id,
            attach,
            self._settings,
            worker_id=self.id,
            gateway=self._gateway,
            llm_client=self._llm_client,
            grace_s=self._grace_s,
            standstill=self._standstill,
        )
        task = asyncio.create_task(session.run(), name=f"session {call_id}")
        self._running.add(task)
        self._empty.clear()
        task.add_done_callback(lambda done: self._over(call_id, session, done))
        return session

    def _over(self, call_id: str, session: StreamSession, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._sessions.get(call_id) is session:  # and not the next agent's
            del self._sessions[call_id]
        if not self._running:
            self._empty.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a session failed", exc_info=error, extra={"call_id": call_id})


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then finish the sessions in progress; a second signal cuts."""
    assert settings.livekit_api_secret is not None
    stopping, cut = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (cut if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    tokens = TokenIssuer(settings.livekit_api_secret.get_secret_value())
    llm_client = build_llm_client(settings)
    async with aiohttp.ClientSession() as http, llm_client:
        gateway = Gateway(http, settings.gateway_base_url)
        server = StreamServer(settings, gateway=gateway, tokens=tokens, llm_client=llm_client)
        runner = web.AppRunner(server.app(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, settings.streams_host, settings.streams_port).start()
        host, port = runner.addresses[0][:2]
        server.address = settings.streams_url or f"http://{host}:{port}"
        log.info("stream worker ready", extra={"address": server.address})
        recordings = (
            settings.data_dir / "spool" / "recordings",
            Stores.from_settings(settings),
            RecordingReport(gateway, tokens),
        )
        presence = Presence(server.heartbeat, gateway, tokens, on_taken=server.known)
        helpers = [
            asyncio.create_task(presence.run(), name="presence"),
            asyncio.create_task(
                sweep_forever(gateway, settings.data_dir / "spool" / "worker"), name="sweeper"
            ),
            asyncio.create_task(sweep_recordings(*recordings), name="recordings"),
        ]
        presence.begin()
        server.start()
        try:
            await stopping.wait()
            log.info("draining", extra={"sessions": server.heartbeat().active})
            server.draining = True
            presence.hurry()
            drained = asyncio.create_task(server.drain(settings.worker_drain_timeout_s))
            second = asyncio.create_task(cut.wait())
            await asyncio.wait({drained, second}, return_when=asyncio.FIRST_COMPLETED)
            for task in (drained, second):
                task.cancel()
        finally:
            await server.aclose()
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await sweep_at_the_end(*recordings)
            await runner.cleanup()
