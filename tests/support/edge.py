"""A small application with the gateway's HTTP layers, served on a free port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web, web_app
from aiohttp.typedefs import Middleware

from gateway.http.body import MAX_BYTES, add_ignored_fields
from gateway.http.connection import Runner
from gateway.http.errors import add_request_id, error_middleware
from gateway.http.route import Route, register


@dataclass(frozen=True)
class Served:
    """A running server. ``http`` takes relative paths; ``port`` is for raw bytes."""

    http: aiohttp.ClientSession
    port: int


def make_app(routes: Iterable[Route], *inner: Middleware) -> web.Application:
    app = web.Application(middlewares=[error_middleware, *inner], client_max_size=MAX_BYTES)
    app.on_response_prepare.extend([add_request_id, add_ignored_fields])
    register(app, routes)
    return app


@asynccontextmanager
async def served(app: web.Application, **options: Any) -> AsyncIterator[Served]:
    """Serve ``app``; ``options`` are for the runner and its connections."""
    runner = Runner(app, **{"shutdown_timeout": 2, **options})
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            yield Served(http, port)
    finally:
        await runner.cleanup()
        # aiohttp remembers the middlewares of the last 1024 handlers, and with each its
        # application: a test process held hundreds of gateways (1 GB), and searched them for
        # garbage.
        web_app._cached_build_middleware.cache_clear()
