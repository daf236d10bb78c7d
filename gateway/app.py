"""The application, with its resources and middleware. Its routes are in gateway.routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime

from aiohttp import web

from core.models import now
from core.process_metrics import watch_process
from core.settings import Settings
from core.tasks.alongside import alongside
from core.url_guard import guarded_session
from gateway.auth.tokens import Authenticator, authentication
from gateway.cache.open_cache import open_cache
from gateway.calls.limits import CallLimits
from gateway.calls.policy import DialPolicy
from gateway.calls.timeline import Timeline
from gateway.calls.trunks import check_settings
from gateway.http import openapi
from gateway.http.body import MAX_BYTES, add_ignored_fields
from gateway.http.errors import add_request_id, error_middleware
from gateway.http.host_names import Names
from gateway.http.metrics import Metrics
from gateway.http.newcomers import Newcomers
from gateway.http.pace import PACE, USUAL, Pace
from gateway.http.route import Route, register
from gateway.http.streams import StreamLimit
from gateway.keys import (
    AGENT_STORE,
    AGENTS,
    AUTHENTICATOR,
    CALL_SERVICES,
    CLOCK,
    CREDENTIALS,
    DATABASE,
    DELIVERIES,
    EXPORTER,
    EXPORTS,
    GATEWAYS,
    LIMITS,
    LINKS,
    LISTENERS,
    METRICS,
    NEWCOMERS,
    NUMBER_LOOKUP,
    NUMBER_SERVICE,
    NUMBERS,
    OUTBOX,
    POLICY,
    RECORDINGS,
    ROOM_NAMES,
    SESSIONS,
    SETTINGS,
    SIP_GUARD,
    STOPPING,
    STORE,
    STREAMS,
    TASKS,
    TIMELINE,
    VAULT,
    WEBHOOK_SENDER,
    WEBHOOKS,
    WORKSHOP,
    WRITE_PROBE,
    call_services,
)
from gateway.lookup.agent_files import AgentFiles
from gateway.lookup.agents import Agents
from gateway.lookup.numbers import Numbers
from gateway.numbers.accounts import Accounts
from gateway.numbers.service import NumberService
from gateway.numbers.twilio import TwilioHttp
from gateway.recordings.destinations import session_to_tenants
from gateway.recordings.exporter import Exporter
from gateway.recordings.links import Links
from gateway.recordings.listeners import Listeners
from gateway.recordings.reporting import reporter
from gateway.recordings.retention import Retention
from gateway.recordings.service import RecordingService
from gateway.recordings.workshop import Workshop
from gateway.routes import ROUTES
from gateway.services import open_call_services
from gateway.store.agents import AgentStore
from gateway.store.calls import Store
from gateway.store.credentials import CredentialStore, Vault
from gateway.store.database import Database
from gateway.store.deliveries import Deliveries
from gateway.store.gateways.gateways import Gateways
from gateway.store.gateways.rates import Rates
from gateway.store.numbers import NumberStore
from gateway.store.outbox import Outbox
from gateway.store.recordings.exports import Exports
from gateway.store.recordings.recordings import Recordings
from gateway.store.room_names import RoomNames
from gateway.store.streams.sessions import SessionStore
from gateway.store.streams.tasks import TaskStore
from gateway.store.webhooks import WebhookStore
from gateway.store.write_probe import WriteProbe
from gateway.webhooks.payload import render
from gateway.webhooks.sender import DRAIN_S, SLOTS, Sender
from recordings.spool_metrics import SpoolCollector
from recordings.stores import Stores
from recordings.upload import sweep_recordings
from sip.guard import Resolver, SipGuard
from sip.numbering import load_tables

log = logging.getLogger(__name__)


async def create_app(
    settings: Settings,
    *,
    resolve: Resolver | None = None,
    clock: Callable[[], datetime] = now,
    pace: Pace = USUAL,
) -> web.Application:
    """Return the application, ready to serve.

    ``resolve`` resolves the names in tenants' SIP addresses; the default is the system's resolver.
    ``clock`` tells the time by which leases and holds in the database end; ``pace``, how long
    requests wait.
    Raises ValueError (an invalid setting), Unavailable (no database).
    """
    check_settings(settings)
    authenticator = Authenticator.from_settings(settings)
    agents = AgentFiles(settings)
    known = agents.check()
    if settings.default_agent not in known:
        raise ValueError(f"DEFAULT_AGENT={settings.default_agent} names no file in AGENTS_DIR")
    metrics = Metrics()
    watch_process(metrics.registry)
    app = web.Application(
        middlewares=[
            metrics.middleware,
            error_middleware,
            authentication(authenticator, Names(settings)),
        ],
        client_max_size=MAX_BYTES,
    )
    app.on_response_prepare.extend([add_request_id, add_ignored_fields])
    app[SETTINGS] = settings
    app[AUTHENTICATOR] = authenticator
    app[METRICS] = metrics
    app[STOPPING] = asyncio.Event()
    app[PACE] = pace
    app[POLICY] = DialPolicy.from_settings(settings)
    if settings.auth_required and settings.dial_home_country is None:
        log.warning("DIAL_HOME_COUNTRY is not set: tenants' bare numbers need their country code")
    app[SIP_GUARD] = SipGuard.from_settings(settings, resolve=resolve)
    load_tables()
    shared_database = not settings.database_url.startswith("sqlite")
    cache = open_cache(settings.cache_url, shared_database=shared_database)
    vault = app[VAULT] = Vault.from_settings(settings)
    database = app[DATABASE] = await Database.open(settings.database_url)
    app[WRITE_PROBE] = WriteProbe(database)
    outbox = app[OUTBOX] = Outbox(database, render, clock=clock)
    app[DELIVERIES] = Deliveries(database)
    app[STORE] = Store(database, outbox, vault, metrics.counted, clock)
    app[GATEWAYS] = Gateways(database, app[STORE].us, clock)
    app[ROOM_NAMES] = RoomNames(database, clock)
    app[SESSIONS] = SessionStore(database, vault, clock)
    app[TASKS] = TaskStore(database, clock)
    app[CLOCK] = clock
    app[WEBHOOKS] = WebhookStore(database, vault)
    app[LIMITS] = CallLimits(
        app[STORE],
        rates=Rates(database, clock),
        calls_per_second=settings.calls_per_second,
        max_concurrent=settings.max_concurrent_calls,
        reserve=settings.fair_share_reserve,
        agent_name=settings.agent_name,
        ring_while_full_s=settings.ring_while_full_s,
    )
    app[AGENT_STORE] = AgentStore(database, cache, vault)
    app[NUMBERS] = NumberStore(database, cache)
    app[CREDENTIALS] = CredentialStore(database, vault)
    app[AGENTS] = Agents(agents, app[AGENT_STORE], cache)
    app[NUMBER_LOOKUP] = Numbers(app[NUMBERS], cache)
    app[TIMELINE] = Timeline(app[STORE])
    _add_recordings(app)
    app[EXPORTS] = Exports(database, vault, clock)
    app[STREAMS] = StreamLimit(settings.max_streams)
    app[NEWCOMERS] = Newcomers(metrics.sockets_refused.inc)
    app.on_cleanup.append(_closing(authenticator.aclose))
    app.on_cleanup.append(_closing(cache.aclose))
    app.cleanup_ctx.append(_resources)
    routes = [*ROUTES] if settings.metrics_port is not None else [*ROUTES, metrics_route(metrics)]
    register(app, [*routes, *openapi.documents(routes, auth_required=settings.auth_required)])
    return app


def _add_recordings(app: web.Application) -> None:
    settings, clock = app[SETTINGS], app[CLOCK]
    service = app[RECORDINGS] = RecordingService(
        rows=Recordings(app[DATABASE], clock),
        calls=app[STORE],
        stores=Stores.from_settings(settings),
        settings=settings,
        clock=clock,
    )
    app[WORKSHOP] = Workshop(service)
    app[LISTENERS] = Listeners(app[TIMELINE])
    secret = settings.livekit_api_secret
    app[LINKS] = (
        Links(secret.get_secret_value(), settings.public_base_url, clock) if secret else None
    )


def metrics_route(metrics: Metrics) -> Route:
    return Route(
        "GET /metrics",
        metrics.scraped,
        "Prometheus metrics",
        tag="Health",
        content="text/plain",
        public=True,
    )


async def _resources(app: web.Application) -> AsyncIterator[None]:
    """Open the resources that live as long as the application, and close them in reverse order."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(app[DATABASE].close)
        stack.push_async_callback(app[WRITE_PROBE].aclose)
        await stack.enter_async_context(alongside(app[TIMELINE].run(app[STOPPING]), "news"))
        await stack.enter_async_context(alongside(app[LIMITS].run(), "rates of calls"))
        await stack.enter_async_context(_webhooks(app))
        await stack.enter_async_context(_recordings(app))
        await stack.enter_async_context(_exports(app))
        twilio = TwilioHttp(app[SETTINGS].twilio_base_url)
        stack.push_async_callback(twilio.close)
        accounts = Accounts(app[CREDENTIALS], twilio)
        app[CALL_SERVICES] = await stack.enter_async_context(open_call_services(app, accounts))
        app[NUMBER_SERVICE] = NumberService(
            settings=app[SETTINGS],
            numbers=app[NUMBERS],
            lookup=app[NUMBER_LOOKUP],
            agents=app[AGENTS],
            credentials=app[CREDENTIALS],
            accounts=accounts,
            provisioner=lambda: call_services(app).provisioner,
        )
        yield


@contextlib.asynccontextmanager
async def _recordings(app: web.Application) -> AsyncIterator[None]:
    service = app[RECORDINGS]
    spool = app[SETTINGS].data_dir / "spool" / "recordings"
    report = reporter(service, app[TIMELINE])
    app[METRICS].registry.register(SpoolCollector(spool))
    async with (
        alongside(Retention(service).run(), "retention"),
        # Of workers on this machine that are gone.
        alongside(sweep_recordings(spool, service.stores, report), "recordings of the spool"),
    ):
        with contextlib.closing(app[WORKSHOP]):
            yield


@contextlib.asynccontextmanager
async def _exports(app: web.Application) -> AsyncIterator[None]:
    async with session_to_tenants(app[SETTINGS]) as session:
        exporter = app[EXPORTER] = Exporter(
            exports=app[EXPORTS],
            stores=app[RECORDINGS].stores,
            timeline=app[TIMELINE],
            settings=app[SETTINGS],
            session=session,
            clock=app[CLOCK],
        )
        async with alongside(exporter.run(), "exports"):
            yield


@contextlib.asynccontextmanager
async def _webhooks(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    async with guarded_session(
        allow_private=settings.webhook_allow_private, limit=SLOTS
    ) as session:
        sender = app[WEBHOOK_SENDER] = Sender(app[OUTBOX], app[WEBHOOKS], session)
        try:
            async with alongside(sender.run(), "webhooks"):
                yield
        finally:
            await sender.aclose(min(DRAIN_S, settings.shutdown_grace_s))


def _closing(close: Callable[[], Awaitable[None]]) -> Callable[[web.Application], Awaitable[None]]:
    async def on_cleanup(_app: web.Application) -> None:
        await close()

    return on_cleanup
