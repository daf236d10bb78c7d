"""The application: its resources, its middleware, and the table of contents of its API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from livekit.api import LiveKitAPI

from core.configs import AgentFiles
from core.models import Heartbeat
from core.settings import Settings
from core.store import Store
from core.tokens import TokenIssuer
from gateway import calls, health, internal, sip_call, webhooks
from gateway.auth import Authenticator, authentication
from gateway.body import MAX_BYTES
from gateway.errors import add_request_id, error_middleware
from gateway.keys import (
    AGENTS,
    LIVEKIT,
    METRICS,
    OUTBOUND,
    ROOMS,
    SETTINGS,
    SIP,
    STOPPING,
    STORE,
    TIMELINE,
    TOKENS,
)
from gateway.live import Timeline
from gateway.metrics import Metrics
from gateway.outbound import Outbound
from gateway.reconciler import Reconciler
from gateway.room_access import LiveKitRooms
from gateway.route import Route, register

# LiveKit's own requests answer in ms; one that does not is broken, not slow. A
# dial that waits for its answer sets its own time-out (livekit-api).
_LIVEKIT_TIMEOUT = aiohttp.ClientTimeout(total=8, connect=3)
# Enough for every concurrent dial to wait for its answer on a connection of its own.
_LIVEKIT_CONNECTIONS = 1000

ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/sip/call",
        handler=sip_call.create,
        summary="Dial a phone number into a room, with an agent",
        tag="SIP",
        body=sip_call.SipCallRequest,
        answer=sip_call.SipCallResponse,
        errors=(
            (400, "INVALID_PHONE_NUMBER"),
            (400, "INVALID_OUTBOUND_ADDRESS"),
            (404, "ROOM_NOT_FOUND"),
            (404, "AGENT_NOT_FOUND"),
            (409, "PARTICIPANT_EXISTS"),
            (500, "OUTBOUND_ADDRESS_NOT_CONFIGURED"),
            (500, "LIVEKIT_NOT_CONFIGURED"),
            (500, "CALL_FAILED"),
            (503, "AGENT_UNAVAILABLE"),
            (503, "SIP_OVERLOADED"),
            (503, "STORE_UNAVAILABLE"),
        ),
        idempotent=True,
    ),
    Route(
        method="GET",
        path="/v1/calls",
        handler=calls.index,
        summary="List calls, newest first",
        tag="Calls",
        query=calls.CallQuery,
        answer=calls.CallList,
    ),
    Route(
        method="GET",
        path="/v1/calls/{id}",
        handler=calls.show,
        summary="One call, with its transcript",
        tag="Calls",
        answer=calls.CallDetail,
        errors=((404, "CALL_NOT_FOUND"),),
    ),
    Route(
        method="GET",
        path="/v1/calls/{id}/events",
        handler=calls.events,
        summary="A call's timeline as server-sent events: replay, then live",
        tag="Calls",
        content="text/event-stream",
        errors=((404, "CALL_NOT_FOUND"),),
    ),
    Route(
        method="POST",
        path="/livekit/webhook",
        handler=webhooks.receive,
        summary="LiveKit's webhooks, signed by LiveKit",
        tag="LiveKit",
        public=True,
        errors=((401, "UNAUTHORIZED"), (500, "LIVEKIT_NOT_CONFIGURED")),
    ),
    Route(
        method="GET",
        path="/",
        handler=health.root,
        summary="The service answers",
        tag="Health",
        public=True,
    ),
    Route(
        method="GET",
        path="/healthz",
        handler=health.healthz,
        summary="Liveness",
        tag="Health",
        public=True,
    ),
    Route(
        method="GET",
        path="/readyz",
        handler=health.readyz,
        summary="Readiness, and what is missing",
        tag="Health",
        public=True,
        errors=((503, "UNAVAILABLE"),),
    ),
    Route(
        method="POST",
        path="/internal/workers/heartbeat",
        handler=internal.heartbeat,
        summary="A worker lives",
        tag="Internal",
        body=Heartbeat,
        internal=True,
    ),
    Route(
        method="GET",
        path="/internal/calls/{id}",
        handler=internal.brief,
        summary="What a worker needs to know of its call",
        tag="Internal",
        internal=True,
    ),
    Route(
        method="POST",
        path="/internal/calls/{id}/events",
        handler=internal.events,
        summary="What a worker saw",
        tag="Internal",
        body=internal.Events,
        internal=True,
    ),
)


async def create_app(settings: Settings) -> web.Application:
    """Ready to be served. Raises ValueError (a wrong setting), Unavailable (no database)."""
    authenticator = Authenticator.from_settings(settings)
    agents = AgentFiles(settings.agents_dir)
    known = agents.check()
    if settings.default_agent not in known:
        raise ValueError(f"DEFAULT_AGENT={settings.default_agent} is no file in AGENTS_DIR")
    metrics = Metrics()
    app = web.Application(
        middlewares=[metrics.middleware, error_middleware, authentication(authenticator)],
        client_max_size=MAX_BYTES,
    )
    app.on_response_prepare.append(add_request_id)
    app[SETTINGS] = settings
    app[AGENTS] = agents
    app[METRICS] = metrics
    app[STOPPING] = asyncio.Event()
    app[STORE] = await Store.open(settings.database_url)
    app[TIMELINE] = Timeline(app[STORE])
    app.cleanup_ctx.append(_resources)
    register(app, ROUTES)
    if settings.metrics_port is None:
        register(app, [metrics_route(metrics)])
    return app


def metrics_route(metrics: Metrics) -> Route:
    return Route(
        method="GET",
        path="/metrics",
        handler=metrics.handler(),
        summary="Prometheus metrics",
        tag="Health",
        content="text/plain",
        public=True,
    )


async def _resources(app: web.Application) -> AsyncIterator[None]:
    """What lives as long as the application, closed in the reverse order."""
    settings = app[SETTINGS]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(app[STORE].close)
        if settings.livekit_api_key is None or settings.livekit_api_secret is None:
            app[LIVEKIT] = app[SIP] = None
            app[TOKENS] = None
            app[OUTBOUND] = None
            yield
            return
        secret = settings.livekit_api_secret.get_secret_value()
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                timeout=_LIVEKIT_TIMEOUT,
                connector=aiohttp.TCPConnector(limit=_LIVEKIT_CONNECTIONS),
            )
        )
        livekit, sip = (
            LiveKitAPI(url, settings.livekit_api_key, secret, session=session, failover=False)
            for url in (settings.livekit_http_url, settings.sip_http_url)
        )
        app[LIVEKIT], app[SIP] = livekit, sip
        tokens = app[TOKENS] = TokenIssuer(secret)
        rooms = app[ROOMS] = LiveKitRooms(livekit, app[STORE])
        outbound = Outbound(
            livekit=livekit,
            sip=sip,
            store=app[STORE],
            timeline=app[TIMELINE],
            rooms=rooms,
            tokens=tokens,
            metrics=app[METRICS],
            agent_name=settings.agent_name,
            agent_join_timeout_s=settings.agent_join_timeout_s,
        )
        app[OUTBOUND] = outbound
        stack.push_async_callback(outbound.drain, settings.shutdown_grace_s)
        reconciler = Reconciler(
            livekit=livekit, store=app[STORE], timeline=app[TIMELINE], outbound=outbound
        )
        rounds = asyncio.create_task(reconciler.run(), name="reconciler")
        stack.push_async_callback(_cancelled, rounds)
        yield


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
