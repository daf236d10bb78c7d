"""An application on loopback that answers TwiML and takes streams, and checks signatures."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

from dev.standins.twilio import TwilioServer
from dev.standins.twilio.watch import Watch

ACCOUNT, TOKEN = "AC" + "1" * 32, "the-auth-token"
NUMBER, CALLER = "+14155550123", "+14155550100"
WAIT_S = 5.0


@dataclass
class Asked:
    """A request from Twilio to the application."""

    path: str
    form: Mapping[str, str]


@dataclass
class Peer:
    """The application's end of one stream."""

    socket: web.WebSocketResponse
    signature: str
    got: list[dict[str, Any]] = field(default_factory=list)
    watch: Watch = field(default_factory=Watch)
    gone: bool = False
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, the application reads nothing."""
    abort: Callable[[], None] = lambda: None
    """Tears the connection at the application's end."""

    @property
    def sid(self) -> str:
        return str(self.got[1]["streamSid"])

    def of(self, event: str) -> list[dict[str, Any]]:
        return [message for message in self.got if message["event"] == event]

    async def until(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for ``count`` messages of a kind, and return all of that kind."""

        def found() -> list[dict[str, Any]] | None:
            return self.of(event) if len(self.of(event)) >= count else None

        return await self.watch.until(found, WAIT_S)

    async def ended(self) -> None:
        """Wait until the connection is gone."""
        await self.watch.until(lambda: self.gone or None, WAIT_S)

    async def send(self, event: str, **details: object) -> None:
        await self.socket.send_str(
            json.dumps({"event": event, "streamSid": self.sid, event: details})
        )

    async def media(self, ulaw: bytes) -> None:
        await self.send("media", payload=base64.b64encode(ulaw).decode())

    async def mark(self, name: str) -> None:
        await self.send("mark", name=name)

    async def clear(self) -> None:
        await self.send("clear")


class App:
    """``twiml[path]`` is what a path answers, ``{ws}`` in it the stream's URL."""

    def __init__(self) -> None:
        self.twiml: dict[str, str] = {}
        self.content_type = "text/xml"
        self.asked: list[Asked] = []
        self.peers: list[Peer] = []
        self.url = ""
        self.refuse: int | None = None
        """The status with which streams are refused."""
        self.failures: dict[str, list[int | None]] = {}
        """The statuses of a path's next answers; None: the connection is torn."""
        self.watch = Watch()
        self._validator = RequestValidator(TOKEN)

    def forms(self, path: str) -> list[Mapping[str, str]]:
        return [asked.form for asked in self.asked if asked.path == path]

    async def until(self, path: str, count: int = 1) -> list[Mapping[str, str]]:
        def found() -> list[Mapping[str, str]] | None:
            return self.forms(path) if len(self.forms(path)) >= count else None

        return await self.watch.until(found, WAIT_S)

    async def peer(self, number: int = 1) -> Peer:
        """Wait for the n-th stream, and for its ``start``."""

        def found() -> Peer | None:
            return self.peers[number - 1] if len(self.peers) >= number else None

        peer = await self.watch.until(found, WAIT_S)
        await peer.until("start")
        return peer

    async def answer(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        signature = request.headers.get("X-Twilio-Signature", "")
        assert self._validator.validate(f"{self.url}{request.rel_url}", form, signature)
        if request.method == "POST":
            assert request.content_type == "application/x-www-form-urlencoded"
        self.asked.append(Asked(request.path, form or dict(request.query)))
        self.watch.changed()
        if failures := self.failures.get(request.path):
            status = failures.pop(0)
            if status is None:
                assert request.transport is not None
                request.transport.abort()
            return web.Response(status=status or 500)
        text = self.twiml.get(request.path, "").replace("{ws}", f"ws{self.url[4:]}/stream")
        return web.Response(text=text, content_type=self.content_type)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        if self.refuse is not None:
            return web.Response(status=self.refuse)
        signature = request.headers.get("X-Twilio-Signature", "")
        assert self._validator.validate(f"ws{self.url[4:]}/stream", {}, signature)
        socket = web.WebSocketResponse(autoping=True)
        await socket.prepare(request)
        assert request.transport is not None
        peer = Peer(socket, signature, abort=request.transport.abort)
        peer.reading.set()
        self.peers.append(peer)
        self.watch.changed()
        try:
            async for message in socket:
                peer.got.append(json.loads(message.data))
                peer.watch.changed()
                await peer.reading.wait()
        finally:
            # Cancelled if the connection was torn.
            peer.gone = True
            peer.watch.changed()
        return socket


@dataclass
class Rig:
    twilio: TwilioServer
    app: App

    def voice(self, twiml: str, path: str = "/voice") -> None:
        self.app.twiml[path] = f"<Response>{twiml}</Response>"


STREAM = '<Connect><Stream url="{ws}"/></Connect>'


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    app = App()
    server = web.Application()
    server.router.add_get("/stream", app.stream)
    server.router.add_route("*", "/{path:.*}", app.answer)
    runner = web.AppRunner(server, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    app.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with TwilioServer({ACCOUNT: TOKEN}) as twilio:
            twilio.give(ACCOUNT, NUMBER, voice_url=f"{app.url}/voice")
            yield Rig(twilio, app)
    finally:
        await runner.cleanup()
