"""The bridge's SIP API without a SIP socket, in the test's process; faults on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from dev.standins.faults import Faults, Faulty
from sip.bridge.api.server import create_app
from sip.bridge.calls.service import SipService
from sip.bridge.registry import Registry
from sip.bridge.stack.endpoint import Endpoint
from sip.guard import SipGuard
from sip.participant import LiveKit
from tests.support.inprocess import KEY, NOWHERE, SECRET

# LiveKit's client turns this body into an error.
_UNAVAILABLE = {"code": "internal", "msg": "asked for"}


@dataclass(frozen=True)
class SipApi:
    url: str
    registry: Registry
    faults: Faults

    @property
    def names(self) -> list[list[str]]:
        """The names of all trunks, and those of all rules."""
        kinds: tuple[Any, ...] = (self.registry.inbound, self.registry.rules)
        return [sorted(each.name for each in kind.values()) for kind in kinds]


@asynccontextmanager
async def sip_api(folder: Path) -> AsyncIterator[SipApi]:
    livekit = LiveKit(NOWHERE.replace("http", "ws"), KEY, SECRET)
    registry = Registry(folder / "bridge.json")
    service = SipService(Endpoint("127.0.0.1:5060"), registry, livekit, SipGuard())
    faults = Faults()
    app = create_app(service, registry, livekit, lambda: {})
    app.middlewares.append(_edge(faults))
    async with _listening(app) as url:
        yield SipApi(url, registry, faults)


@asynccontextmanager
async def sip_proxy(target: str) -> AsyncIterator[tuple[str, Faults]]:
    """Run a proxy in front of a real SIP API, which forwards everything but the faults."""
    faults = Faults()
    async with aiohttp.ClientSession(target) as session:

        async def forward(request: web.Request) -> web.Response:
            headers = {name: request.headers[name] for name in ("Authorization", "Content-Type")}
            body = await request.read()
            async with session.post(request.path, data=body, headers=headers) as answer:
                content_type = answer.content_type
                return web.Response(
                    status=answer.status, body=await answer.read(), content_type=content_type
                )

        app = web.Application(middlewares=[_edge(faults)])
        app.router.add_post("/{path:.*}", forward)
        async with _listening(app) as url:
            yield url, faults


def _edge(faults: Faults) -> Any:
    @web.middleware
    async def edge(request: web.Request, handler: Any) -> web.StreamResponse:
        line = f"{request.method} {request.path}"
        try:
            answer: web.StreamResponse = await faults.apply(line, lambda: handler(request))
        except Faulty as error:
            return web.json_response(_UNAVAILABLE, status=error.fault.status)
        return answer

    return edge


@asynccontextmanager
async def _listening(app: web.Application) -> AsyncIterator[str]:
    # A request that hangs on purpose ends when its client disconnects.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
