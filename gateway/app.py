"""The application: its resources and its middleware. Its routes are in gateway.routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from aiohttp import web
from livekit.api import LiveKitAPI

from core.process_metrics import watch_process
from core.settings import Settings
from core.tokens import TokenIssuer
from core.url_guard import guarded_session
from gateway.auth.tokens import Authenticator, authentication
from gateway.calls.dispatcher import Dispatcher
from gateway.calls.handover import Handover
from gateway.calls.inbound import Inbound
from gateway.calls.limits import CallLimits
from gateway.calls.outbound import Outbound
from gateway.calls.policy import DialPolicy
from gateway.calls.reconciler import Reconciler
from gateway.calls.rooms import LiveKitRooms
from gateway.calls.timeline import Journal, Timeline
from gateway.calls.transfers import Transfers
from gateway.calls.trunks import check_settings
from gateway.calls.web import WebCalls
from gateway.http import openapi
from gateway.http.body import MAX_BYTES, add_ignored_fields
from gateway.http.errors import add_request_id, error_middleware
from gateway.http.host_names import Names
from gateway.http.metrics import Metrics
from gateway.http.route import Route, register
from gateway.http.streams import StreamLimit
from gateway.keys import (
    AGENT_STORE,
    AGENTS,
    CREDENTIALS,
    DATABASE,
    HANDOVER,
    INBOUND,
    LIMITS,
    LIVEKIT,
    METRICS,
    NUMBER_LOOKUP,
    NUMBER_SERVICE,
    NUMBERS,
    OUTBOUND,
    OUTBOX,
    POLICY,
    ROOMS,
    SETTINGS,
    SIP,
    SIP_GUARD,
    STOPPING,
    STORE,
    STREAMS,
    TIMELINE,
    TOKENS,
    TRANSFERS,
    VAULT,
    WEB_CALLS,
    WEBHOOK_SENDER,
    WEBHOOKS,
    WRITE_PROBE,
)
from gateway.numbers.accounts import Accounts
from gateway.numbers.provisioning import Provisioner
from gateway.numbers.repair import NumberRepair
from gateway.numbers.service import NumberService
from gateway.numbers.sip_objects import SipObjects
from gateway.numbers.twilio import TwilioHttp
from gateway.routes import ROUTES
from gateway.store.agents import AgentStore
from gateway.store.cache import open_cache
from gateway.store.calls import Store
from gateway.store.credentials import CredentialStore, Vault
from gateway.store.database import Database
from gateway.store.lookup import AgentFiles, Agents, Numbers
from gateway.store.numbers import NumberStore
from gateway.store.outbox import Outbox
from gateway.store.room_names import RoomNames
from gateway.store.webhooks import WebhookStore
from gateway.store.write_probe import WriteProbe
from gateway.webhooks.payload import render
from gateway.webhooks.sender import DRAIN_S, SLOTS, Sender
from sip.guard import Resolver, SipGuard
from sip.numbering import load_tables

log = logging.getLogger(__name__)

# LiveKit's own requests answer in ms; one that does not is broken, not slow. A
# dial that waits for its answer sets its own time-out (livekit-api).
log = logging.getLogger(__name__)

_LIVEKIT_TIMEOUT = aiohttp.ClientTimeout(total=8, connect=3)
# Enough for every concurrent dial to wait for its answer on a connection of its own.
_LIVEKIT_CONNECTIONS = 1000


async def create_app(settings: Settings, *, resolve: Resolver | None = None) -> web.Application:
    """Ready to be served. Raises ValueError (a wrong setting), Unavailable (no database).

    ``resolve``: how names in tenants' SIP addresses are resolved; default: as the system does.
    """
    check_settings(settings)
    authenticator = Authenticator.from_settings(settings)
    agents = AgentFiles(settings.agents_dir)
    known = agents.check()
    if settings.default_agent not in known:
        raise ValueError(f"DEFAULT_AGENT={settings.default_agent} is no file in AGENTS_DIR")
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
    app[METRICS] = metrics
    app[STOPPING] = asyncio.Event()
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
    outbox = app[OUTBOX] = Outbox(database, render)
    app[STORE] = Store(database, outbox, vault, metrics.counted)
    app[WEBHOOKS] = WebhookStore(database, vault)
    app[LIMITS] = CallLimits(
        app[STORE],
        calls_per_second=settings.calls_per_second,
        max_concurrent=settings.max_concurrent_calls,
        reserve=settings.fair_share_reserve,
    )
    app[AGENT_STORE] = AgentStore(database, cache, vault)
    app[NUMBERS] = NumberStore(database, cache)
    app[CREDENTIALS] = CredentialStore(database, vault)
    app[AGENTS] = Agents(agents, app[AGENT_STORE], cache)
    app[NUMBER_LOOKUP] = Numbers(app[NUMBERS], cache)
    app[TIMELINE] = Timeline(app[STORE])
    app[STREAMS] = StreamLimit(settings.max_streams)
    app.on_cleanup.append(_closing(authenticator.aclose))
    app.on_cleanup.append(_closing(cache.aclose))
    app.cleanup_ctx.append(_resources)
    routes = [*ROUTES] if settings.metrics_port is not None else [*ROUTES, metrics_route(metrics)]
    register(app, [*routes, *openapi.documents(routes, auth_required=settings.auth_required)])
    return app


def metrics_route(metrics: Metrics) -> Route:
    return Route(
        "GET /metrics",
        metrics.handler(),
        "Prometheus metrics",
        tag="Health",
        content="text/plain",
        public=True,
    )


async def _resources(app: web.Application) -> AsyncIterator[None]:
    """What lives as long as the application, closed in the reverse order."""
    settings = app[SETTINGS]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(app[DATABASE].close)
        stack.push_async_callback(app[WRITE_PROBE].aclose)
        news = asyncio.create_task(app[TIMELINE].run(app[STOPPING]), name="news")
        stack.push_async_callback(_cancelled, news)
        await stack.enter_async_context(_webhooks(app))
        twilio = TwilioHttp(settings.twilio_base_url)
        stack.push_async_callback(twilio.close)
        accounts = Accounts(app[CREDENTIALS], twilio)
        if settings.livekit_api_key is None or settings.livekit_api_secret is None:
            app[LIVEKIT] = app[SIP] = None
            app[TOKENS] = None
            app[NUMBER_SERVICE] = _number_service(app, accounts, None)
            app[OUTBOUND] = app[INBOUND] = app[WEB_CALLS] = None
            app[TRANSFERS] = app[HANDOVER] = None
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
        rooms = app[ROOMS] = LiveKitRooms(livekit, RoomNames(app[DATABASE]))
        await rooms.resume()
        journal = Journal(app[TIMELINE], app[METRICS])
        outbound = Outbound(
            livekit=livekit,
            sip=sip,
            store=app[STORE],
            timeline=app[TIMELINE],
            rooms=rooms,
            journal=journal,
            dispatcher=Dispatcher(livekit, tokens, settings.agent_name),
            policy=app[POLICY],
            limits=app[LIMITS],
            guard=app[SIP_GUARD],
            agent_join_timeout_s=settings.agent_join_timeout_s,
        )
        app[OUTBOUND] = outbound
        stack.push_async_callback(outbound.drain, settings.shutdown_grace_s)
        inbound = app[INBOUND] = Inbound(
            livekit=livekit,
            store=app[STORE],
            numbers=app[NUMBER_LOOKUP],
            agents=app[AGENTS],
            webhooks=app[WEBHOOKS],
            limits=app[LIMITS],
            timeline=app[TIMELINE],
            journal=journal,
            tokens=tokens,
            agent_name=settings.agent_name,
            agent_join_timeout_s=settings.agent_join_timeout_s,
        )
        stack.push_async_callback(inbound.aclose)
        web_calls = app[WEB_CALLS] = WebCalls(
            livekit=livekit,
            store=app[STORE],
            timeline=app[TIMELINE],
            rooms=rooms,
            journal=journal,
            dispatcher=Dispatcher(livekit, tokens, settings.agent_name),
            limits=app[LIMITS],
            agent_join_timeout_s=settings.agent_join_timeout_s,
        )
        stack.push_async_callback(web_calls.aclose)
        app[HANDOVER] = Handover(livekit, app[STORE], app[TIMELINE])
        transfers = app[TRANSFERS] = Transfers(
            livekit=livekit,
            sip=sip,
            store=app[STORE],
            timeline=app[TIMELINE],
            numbers=app[NUMBERS],
            credentials=app[CREDENTIALS],
            policy=app[POLICY],
            limits=app[LIMITS],
            guard=app[SIP_GUARD],
            settings=settings,
        )
        stack.push_async_callback(transfers.aclose)
        provisioner = Provisioner(
            objects=SipObjects(sip, settings.agent_name),
            numbers=app[NUMBERS],
            accounts=accounts,
            settings=settings,
        )
        app[NUMBER_SERVICE] = _number_service(app, accounts, provisioner)
        stack.push_async_callback(provisioner.drain, settings.shutdown_grace_s)
        reconciler = Reconciler(
            livekit=livekit,
            store=app[STORE],
            timeline=app[TIMELINE],
            rooms=rooms,
            outbound=outbound,
            inbound=inbound,
        )
        for name, rounds in (
            ("reconciler", reconciler.run()),
            ("number repair", NumberRepair(provisioner).run()),
        ):
            stack.push_async_callback(_cancelled, asyncio.create_task(rounds, name=name))
        yield


def _number_service(
    app: web.Application, accounts: Accounts, provisioner: Provisioner | None
) -> NumberService:
    return NumberService(
        settings=app[SETTINGS],
        numbers=app[NUMBERS],
        lookup=app[NUMBER_LOOKUP],
        agents=app[AGENTS],
        credentials=app[CREDENTIALS],
        accounts=accounts,
        provisioner=provisioner,
    )


@contextlib.asynccontextmanager
async def _webhooks(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    async with guarded_session(
        allow_private=settings.webhook_allow_private, limit=SLOTS
    ) as session:
        sender = app[WEBHOOK_SENDER] = Sender(app[OUTBOX], app[WEBHOOKS], session)
        sending = asyncio.create_task(sender.run(), name="webhooks")
        try:
            yield
        finally:
            await _cancelled(sending)
            await sender.aclose(min(DRAIN_S, settings.shutdown_grace_s))


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task had failed", exc_info=error, extra={"task": task.get_name()})


def _closing(close: Callable[[], Awaitable[None]]) -> Callable[[web.Application], Awaitable[None]]:
    async def on_cleanup(_app: web.Application) -> None:
        await close()

    return on_cleanup
