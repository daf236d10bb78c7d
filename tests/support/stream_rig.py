"""The environment of the stream worker's tests: a worker in this process, Twilio's stand-in.

The gateway's real handlers record the calls. A bare relay between Twilio and the worker stands for
the rest of the gateway, so that a test can cut, keep or replace each socket. The far ends of
sockets are attached to the worker directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import aiohttp
from aiohttp import web

from core.models import AgentConfig, new_id
from core.streams.messages import LOST, Attach, SocketAttach, TwilioAttach
from core.tokens import TokenIssuer
from dev.providers import Control, Providers
from dev.stack.environment import GivenSettings
from dev.standins.socket import SocketFarEnd
from dev.standins.twilio import Call, TwilioServer
from tests.support.worker_gateway import KeptCall, WorkerGateway
from worker.link.client import Gateway
from worker.streams.server import StreamServer
from worker.voice.providers import build_llm_client

ACCOUNT, TOKEN = "AC" + "2" * 32, "the-auth-token"
CALLER = "+14155550100"


@dataclass
class Relay:
    """Passes frames between Twilio's sockets and the worker, as the gateway does."""

    worker_url: str
    tokens: TokenIssuer
    http: aiohttp.ClientSession
    gateway: WorkerGateway
    url: str = ""
    workers: dict[str, aiohttp.ClientWebSocketResponse] = field(default_factory=dict)
    """The current socket to the worker, by call."""
    resume: set[str] = field(default_factory=set)
    """Calls that have had a socket."""

    async def voice(self, request: web.Request) -> web.Response:
        call_id = request.match_info["id"]
        stream = escape(f"ws{self.url[4:]}/stream")
        again = escape(f"{self.url}/voice/{call_id}")
        over = self.gateway.calls[call_id].of("call.ended")
        text = (
            "<Response><Hangup/></Response>"
            if over
            else f'<Response><Connect><Stream url="{stream}"><Parameter name="call" '
            f'value="{call_id}"/></Stream></Connect><Redirect>{again}</Redirect></Response>'
        )
        return web.Response(text=text, content_type="text/xml")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        await socket.receive_str()
        start = json.loads(await socket.receive_str())["start"]
        call_id = start["customParameters"]["call"]
        resume = call_id in self.resume
        self.resume.add(call_id)
        headers = {"Authorization": f"Bearer {self.tokens.for_stream(call_id)}"}
        url = f"{self.worker_url}/sessions/{call_id}"
        async with self.http.ws_connect(url, headers=headers) as worker:
            self.workers[call_id] = worker
            token = self.tokens.for_call(call_id)
            attach = TwilioAttach(token=token, stream_sid=start["streamSid"], resume=resume)
            await worker.send_str(attach.model_dump_json(by_alias=True))
            back = asyncio.create_task(_pass(worker, socket))
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                await worker.send_str(message.data)
            closed = message.type is aiohttp.WSMsgType.CLOSE
            await worker.close(code=message.data if closed else LOST)
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
        return socket


async def _pass(worker: aiohttp.ClientWebSocketResponse, socket: web.WebSocketResponse) -> None:
    async for message in worker:
        await socket.send_str(message.data)
    code = worker.close_code
    await socket.close(code=1011 if code in (None, 1006) else code)


def worker_values(
    gateway: WorkerGateway, providers: Providers, key: str, secret: str
) -> dict[str, Any]:
    """Return a worker's settings, by field name."""
    return {
        "gateway_url": gateway.url,
        "livekit_api_key": key,
        "livekit_api_secret": secret,
        "deepgram_base_url": providers.deepgram_base_url,
        "openai_base_url": providers.openai_base_url,
        "cartesia_base_url": providers.cartesia_base_url,
        "deepgram_api_key": "deepgram-key",
        "openai_api_key": "openai-key",
        "cartesia_api_key": "cartesia-key",
        "endpointing_ms": 300,
        "webhook_allow_private": True,
    }


class Sessions:
    """Makes sessions at a stream worker. Their events go to ``gateway``."""

    def __init__(
        self,
        worker_url: str,
        gateway: WorkerGateway,
        tokens: TokenIssuer,
        http: aiohttp.ClientSession,
    ) -> None:
        self.worker_url = worker_url
        self.gateway = gateway
        self.tokens = tokens
        self.http = http

    async def record(self, config: AgentConfig, **changes: Any) -> KeptCall:
        """Record a call whose far end comes on a stream."""
        call_id = new_id("call")
        values = {
            "id": call_id,
            "room_name": call_id,
            "direction": "inbound",
            "type": "stream",
            "participant_identity": "caller",
        }
        call = self.gateway.new_call(config, **(values | changes))
        self.gateway.calls[call.id] = call
        await self.gateway.record(call)
        return call

    async def connect(
        self, call_id: str, attach: Attach | str | None, *, token: str = "", query: str = ""
    ) -> aiohttp.ClientWebSocketResponse:
        """Open a socket of the call to the worker as the gateway does, and send ``attach``."""
        token = token or self.tokens.for_stream(call_id)
        url = f"{self.worker_url}/sessions/{call_id}{query}"
        headers = {"Authorization": f"Bearer {token}"}
        socket = await self.http.ws_connect(url, headers=headers)
        if attach is not None:
            text = attach if isinstance(attach, str) else attach.model_dump_json(by_alias=True)
            await socket.send_str(text)
        return socket

    def far_end(self, call: KeptCall, **options: Any) -> SocketFarEnd:
        """Return a socket's far end for the call, which is not attached yet."""

        async def connect(attach: SocketAttach) -> aiohttp.ClientWebSocketResponse:
            return await self.connect(call.id, attach)

        return SocketFarEnd(connect, self.tokens.for_call(call.id), **options)

    @contextlib.asynccontextmanager
    async def session(
        self, config: AgentConfig, *, far: dict[str, Any] | None = None, **changes: Any
    ) -> AsyncIterator[tuple[KeptCall, SocketFarEnd]]:
        """Yield a call on a socket, after its greeting (if any). ``far``: its end's options."""
        call = await self.record(config, **({"direction": "web"} | changes))
        end = self.far_end(call, **(far or {}))
        await end.attach()
        try:
            await call.event("call.answered")
            if config.begin_message:
                await call.until(lambda told: told.turns, "greeting")
            yield call, end
        finally:
            await end.close()


class StreamWorker(Sessions):
    """A stream worker with everything around it."""

    def __init__(
        self,
        server: StreamServer,
        providers: Providers,
        twilio: TwilioServer,
        relay: Relay,
    ) -> None:
        super().__init__(relay.worker_url, relay.gateway, relay.tokens, relay.http)
        self.server = server
        self.providers = providers
        self.twilio = twilio
        self.relay = relay

    @classmethod
    @contextlib.asynccontextmanager
    async def run(
        cls,
        control: Control | None = None,
        *,
        grace_s: float = 30.0,
        folder: Path | None = None,
        **values: Any,
    ) -> AsyncIterator[StreamWorker]:
        """Run it; ``values`` are settings of the worker, by field name.

        ``folder``: where worker and gateway keep their files; None: where nobody looks.
        """
        key, secret = "APIstreamtests", secrets.token_hex(32)
        async with contextlib.AsyncExitStack() as stack:
            enter = stack.enter_async_context
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for part in ("gateway", "worker"):
                (folder / part).mkdir()
            gateway = await enter(WorkerGateway.run(key, secret, folder / "gateway"))
            providers = await enter(Providers(control))
            given = worker_values(gateway, providers, key, secret)
            settings = GivenSettings(**{**given, "data_dir": folder / "worker", **values})
            http = await enter(aiohttp.ClientSession())
            tokens = TokenIssuer(secret)
            model = await enter(build_llm_client(settings))
            server = StreamServer(
                settings,
                gateway=Gateway(http, gateway.url),
                tokens=tokens,
                llm_client=model,
                grace_s=grace_s,
            )
            stack.push_async_callback(server.aclose)
            worker_url = await enter(served(server.app()))
            relay = Relay(worker_url, tokens, http, gateway)
            app = web.Application()
            app.router.add_post("/voice/{id}", relay.voice)
            app.router.add_get("/stream", relay.stream)
            relay.url = await enter(served(app))
            twilio = await enter(TwilioServer({ACCOUNT: TOKEN}))
            yield cls(server, providers, twilio, relay)

    async def call(self, config: AgentConfig, **changes: Any) -> tuple[KeptCall, Call]:
        """Have somebody call a number of an agent; return the record and the call at Twilio."""
        call = await self.record(config, **changes)
        number = f"+1415{secrets.randbelow(10**7):07}"
        self.twilio.give(ACCOUNT, number, voice_url=f"{self.relay.url}/voice/{call.id}")
        return call, await self.twilio.call(number, CALLER)


@contextlib.asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """Serve the application; yield its URL."""
    runner = web.AppRunner(app, shutdown_timeout=0.5, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
