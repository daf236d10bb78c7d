"""A stream worker for the gateway's tests: it keeps sessions, and does what a test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import WSMsgType, web

from core.jobs import Heartbeat
from core.models import new_id
from core.tokens import InvalidToken, TokenIssuer
from gateway.keys import SETTINGS
from tests.support.inprocess import SECRET, Running


class WorkerSession:
    """What one session was sent, by all its sockets."""

    def __init__(self) -> None:
        self.attaches: list[dict[str, Any]] = []
        self.frames = asyncio.Queue[bytes]()
        """Payloads of text and binary frames."""
        self.closes = asyncio.Queue[int | None]()
        """The codes with which sockets were closed; None: broken."""
        self.socket: web.WebSocketResponse | None = None
        self.transport: asyncio.Transport | None = None

    async def send(self, data: bytes, kind: WSMsgType = WSMsgType.TEXT) -> None:
        assert self.socket is not None
        await self.socket.send_frame(data, kind)

    async def close(self, code: int = 1000) -> None:
        assert self.socket is not None
        await self.socket.close(code=code)

    def drop(self) -> None:
        """Break the socket, as a worker that is killed does."""
        assert self.transport is not None
        self.transport.abort()


class StreamWorker:
    """``url`` is its address. ``refusing``: the status of every answer, if set."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.url = ""
        self.sessions: dict[str, WorkerSession] = {}
        self.ended: list[str] = []
        self.asked: list[str] = []
        self.commands: list[dict[str, Any]] = []
        self.on_command: Callable[[str, dict[str, Any]], None] | None = None
        """Gets the call's id and the command."""
        self.refusing: int | None = None
        self.reading = asyncio.Event()
        """Cleared: it reads nothing more from its sockets."""
        self.reading.set()
        self.came = asyncio.Event()
        self._tokens = TokenIssuer(SECRET)
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> StreamWorker:
        app = web.Application()
        app.router.add_get("/sessions/{id}", self._attach)
        app.router.add_delete("/sessions/{id}", self._end)
        app.router.add_post("/sessions/{id}", self._command)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Go away with all sessions."""
        self.reading.set()
        for session in self.sessions.values():
            if session.transport is not None and not session.transport.is_closing():
                session.transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def beat(self, gateway: Running, **changes: Any) -> None:
        values = {"worker_id": self.worker_id, "capacity": 10_000, "active": len(self.sessions)}
        values |= {"agent_name": gateway.app[SETTINGS].agent_name, "address": self.url}
        await gateway.store.heartbeat(Heartbeat(**{**values, **changes}))

    async def session(self, count: int = 1) -> WorkerSession:
        """Return the only session, once its ``count`` sockets have been attached."""
        async with asyncio.timeout(10):
            while True:
                found = [s for s in self.sessions.values() if len(s.attaches) >= count]
                if found:
                    return found[0]
                self.came.clear()
                await self.came.wait()

    def _check(self, request: web.Request) -> str:
        call_id = request.match_info["id"]
        self.asked.append(f"{request.method} {call_id}")
        _, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            if self._tokens.verify(token, "switchroom:stream") != call_id:
                raise web.HTTPUnauthorized
        except InvalidToken:
            raise web.HTTPUnauthorized from None
        return call_id

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        call_id = self._check(request)
        session = self.sessions.get(call_id)
        asked = request.query.get("epoch")
        if session is not None and asked not in (None, str(session.attaches[0]["epoch"])):
            return web.Response(status=404)
        if "Upgrade" not in request.headers:
            return web.Response(status=404 if session is None else 200)
        if request.query.get("resume") == "true" and session is None:
            return web.Response(status=404)
        if self.refusing is not None:
            return web.Response(status=self.refusing)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        attach = json.loads(await socket.receive_str())
        if attach["resume"] and call_id not in self.sessions:
            await socket.close(code=4404)
            return socket
        former = self.sessions.get(call_id)
        if former is not None and former.attaches and former.attaches[0]["epoch"] < attach["epoch"]:
            del self.sessions[call_id]
        session = self.sessions.setdefault(call_id, WorkerSession())
        assert attach["resume"] is bool(session.attaches), "resume of a new session, or none"
        session.socket, session.transport = socket, request.transport
        session.attaches.append(attach)
        self.came.set()
        await self._serve(socket, session)
        return socket

    async def _serve(self, socket: web.WebSocketResponse, session: WorkerSession) -> None:
        while True:
            await self.reading.wait()
            message = await socket.receive()
            match message.type:
                case WSMsgType.TEXT:
                    session.frames.put_nowait(message.data.encode())
                case WSMsgType.BINARY:
                    session.frames.put_nowait(message.data)
                case WSMsgType.CLOSE:
                    return session.closes.put_nowait(message.data)
                case _:
                    return session.closes.put_nowait(None)

    async def _command(self, request: web.Request) -> web.StreamResponse:
        call_id = self._check(request)
        if call_id not in self.sessions:
            return web.Response(status=404)
        command = await request.json()
        self.commands.append(command)
        if self.on_command is not None:
            self.on_command(call_id, command)
        return web.Response(status=204)

    async def _end(self, request: web.Request) -> web.StreamResponse:
        call_id = self._check(request)
        self.ended.append(call_id)
        session = self.sessions.pop(call_id, None)
        if session is None:
            return web.Response(status=404)
        if session.socket is not None:
            await session.socket.close(code=1000)
        return web.Response(status=204)


@asynccontextmanager
async def stream_worker(gateway: Running, **beat: Any) -> AsyncIterator[StreamWorker]:
    """A worker whose heartbeat the gateway has."""
    async with StreamWorker(new_id("wrk")) as worker:
        await worker.beat(gateway, **beat)
        yield worker
