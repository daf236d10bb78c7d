"""Open the services that need LiveKit, the reconciler, and the repair of numbers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial

import aiohttp
from aiohttp import web
from livekit.api import LiveKitAPI, TokenVerifier, WebhookReceiver

from core.tasks.alongside import alongside
from core.tokens import TokenIssuer
from gateway.calls.dispatcher import Dispatcher
from gateway.calls.handover import Handover
from gateway.calls.inbound import Inbound
from gateway.calls.livekit import LIVEKIT_ERRORS
from gateway.calls.outbound import Outbound
from gateway.calls.places.doorman import Doorman
from gateway.calls.places.line import Line
from gateway.calls.reconciler import Reconciler
from gateway.calls.recovery.service import Recovery
from gateway.calls.recovery.succession import Succession
from gateway.calls.rooms import LiveKitRooms
from gateway.calls.streams.agents import Agents as SessionAgents
from gateway.calls.streams.reconciler import StreamReconciler
from gateway.calls.streams.sessions import StreamSessions
from gateway.calls.streams.tokens import SessionTokens
from gateway.calls.streams.transfers import TwilioTransfers
from gateway.calls.streams.twilio import TwilioSessions
from gateway.calls.streams.workers import StreamWorkers
from gateway.calls.tasks.dialler import Dialler
from gateway.calls.tasks.progress import Progress
from gateway.calls.tasks.runner import TaskRunner
from gateway.calls.tasks.service import Tasks
from gateway.calls.timeline import Journal
from gateway.calls.transfers import Transfers
from gateway.calls.web import WebCalls
from gateway.keys import (
    AGENTS,
    CLOCK,
    CREDENTIALS,
    DATABASE,
    GATEWAYS,
    LIMITS,
    METRICS,
    NUMBER_LOOKUP,
    NUMBERS,
    POLICY,
    ROOM_NAMES,
    SESSIONS,
    SETTINGS,
    SIP_GUARD,
    STORE,
    TASKS,
    TIMELINE,
    WEBHOOKS,
    CallServices,
)
from gateway.numbers.accounts import Accounts
from gateway.numbers.provisioning import Provisioner
from gateway.numbers.repair import NumberRepair
from gateway.numbers.sip_objects import SipObjects
from gateway.recordings.control import RecordingControl
from gateway.store.call_status import Call
from gateway.store.lost.agents_at_work import AgentsAtWork

# LiveKit answers its own requests in milliseconds; one that takes longer has failed. A dial that
# waits for the answer sets its own time-out (livekit-api).
_LIVEKIT_TIMEOUT = aiohttp.ClientTimeout(total=8, connect=3)
# Every concurrent dial waits for its answer on a connection of its own.
_LIVEKIT_CONNECTIONS = 1000


@contextlib.asynccontextmanager
async def open_call_services(
    app: web.Application, accounts: Accounts
) -> AsyncIterator[CallServices | None]:
    """Yield the services; None without LiveKit keys. Closes in reverse order, the tasks first."""
    settings = app[SETTINGS]
    if settings.livekit_api_key is None or settings.livekit_api_secret is None:
        yield None
        return
    key, secret = settings.livekit_api_key, settings.livekit_api_secret.get_secret_value()
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                timeout=_LIVEKIT_TIMEOUT,
                connector=aiohttp.TCPConnector(limit=_LIVEKIT_CONNECTIONS),
            )
        )
        livekit, sip = (
            LiveKitAPI(url, key, secret, session=session, failover=False)
            for url in (settings.livekit_http_url, settings.sip_http_url)
        )
        # It announces this gateway for as long as anything below is followed.
        succession = Succession(app[GATEWAYS])
        await succession.begin()
        stack.push_async_callback(succession.leave)
        await stack.enter_async_context(alongside(succession.run(), "succession"))
        tokens = TokenIssuer(secret)
        dispatcher = Dispatcher(livekit, tokens, app[STORE].places, settings.agent_name)
        line = Line(app[STORE].places, settings.agent_name, settings.ring_while_full_s)
        stack.push_async_callback(line.aclose)
        journal = Journal(app[TIMELINE], app[METRICS])
        rooms = LiveKitRooms(livekit, app[ROOM_NAMES])
        await rooms.resume()
        outbound = Outbound(
            livekit=livekit,
            sip=sip,
            store=app[STORE],
            timeline=app[TIMELINE],
            rooms=rooms,
            journal=journal,
            dispatcher=dispatcher,
            line=line,
            policy=app[POLICY],
            limits=app[LIMITS],
            guard=app[SIP_GUARD],
            agent_join_timeout_s=settings.agent_join_timeout_s,
        )
        stack.push_async_callback(outbound.drain, settings.shutdown_grace_s)
        inbound = Inbound(
            livekit=livekit,
            store=app[STORE],
            numbers=app[NUMBER_LOOKUP],
            agents=app[AGENTS],
            webhooks=app[WEBHOOKS],
            limits=app[LIMITS],
            timeline=app[TIMELINE],
            journal=journal,
            tokens=tokens,
            dispatcher=dispatcher,
            line=line,
            agent_join_timeout_s=settings.agent_join_timeout_s,
            tenant_recordings=settings.tenant_recordings,
        )
        stack.push_async_callback(inbound.aclose)
        web_calls = WebCalls(
            livekit=livekit,
            store=app[STORE],
            timeline=app[TIMELINE],
            rooms=rooms,
            journal=journal,
            dispatcher=dispatcher,
            limits=app[LIMITS],
            agent_join_timeout_s=settings.agent_join_timeout_s,
        )
        stack.push_async_callback(web_calls.aclose)
        # A socket lasts as long as its call, and each has a connection of its own.
        sockets = await stack.enter_async_context(
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0)
            )
        )
        stream_workers = StreamWorkers(app[STORE], tokens, sockets, settings.agent_name)
        recovery = Recovery(
            livekit=livekit,
            store=app[STORE],
            at_work=AgentsAtWork(app[DATABASE]),
            timeline=app[TIMELINE],
            dispatcher=dispatcher,
            metrics=app[METRICS],
            silent_s=settings.agent_silent_s,
            within_s=settings.agent_join_timeout_s,
            stream_alive=stream_workers.alive,
        )
        stack.push_async_callback(recovery.aclose)
        session_tokens = SessionTokens(secret, app[CLOCK])
        session_agents = SessionAgents(
            store=app[STORE],
            sessions=app[SESSIONS],
            workers=stream_workers,
            timeline=app[TIMELINE],
            journal=journal,
            tokens=tokens,
            lost=recovery.lost,
            within_s=settings.agent_join_timeout_s,
        )
        stream_sessions = StreamSessions(
            store=app[STORE],
            sessions=app[SESSIONS],
            tokens=session_tokens,
            workers=stream_workers,
            agents=session_agents,
            timeline=app[TIMELINE],
            journal=journal,
            limits=app[LIMITS],
            clock=app[CLOCK],
        )
        stack.push_async_callback(stream_sessions.aclose)
        twilio_sessions = TwilioSessions(
            public_url=settings.public_base_url,
            store=app[STORE],
            sessions=app[SESSIONS],
            streams=stream_sessions,
            tokens=session_tokens,
            numbers=app[NUMBERS],
            agents=app[AGENTS],
            webhooks=app[WEBHOOKS],
            limits=app[LIMITS],
            accounts=accounts,
        )
        stack.push_async_callback(twilio_sessions.aclose)
        tasks = await stack.enter_async_context(_tasks(app, accounts, twilio_sessions))
        transfers = Transfers(
            livekit=livekit,
            sip=sip,
            store=app[STORE],
            timeline=app[TIMELINE],
            numbers=app[NUMBERS],
            credentials=app[CREDENTIALS],
            policy=app[POLICY],
            limits=app[LIMITS],
            guard=app[SIP_GUARD],
            twilio=TwilioTransfers(
                store=app[STORE],
                sessions=app[SESSIONS],
                timeline=app[TIMELINE],
                accounts=accounts,
                twilio=twilio_sessions,
            ),
            settings=settings,
        )
        stack.push_async_callback(transfers.aclose)
        provisioner = Provisioner(
            objects=SipObjects(sip, settings.agent_name, settings.ring_while_full_s),
            numbers=app[NUMBERS],
            accounts=accounts,
            settings=settings,
        )
        stack.push_async_callback(provisioner.drain, settings.shutdown_grace_s)
        reconciler = Reconciler(
            livekit=livekit,
            store=app[STORE],
            timeline=app[TIMELINE],
            rooms=rooms,
            outbound=outbound,
            inbound=inbound,
            recovery=recovery,
        )
        stream_reconciler = StreamReconciler(
            store=app[STORE],
            sessions=app[SESSIONS],
            workers=stream_workers,
            timeline=app[TIMELINE],
            lost=recovery.lost,
            comes_within_s=settings.agent_join_timeout_s,
            clock=app[CLOCK],
        )
        repair = NumberRepair(provisioner)
        succession.adopt = partial(
            _adopt,
            outbound=outbound,
            inbound=inbound,
            web_calls=web_calls,
            stream_sessions=stream_sessions,
            reconciler=reconciler,
        )
        stack.callback(setattr, succession, "adopt", None)
        await stack.enter_async_context(alongside(reconciler.run(), "reconciler"))
        await stack.enter_async_context(alongside(stream_reconciler.run(), "stream reconciler"))
        await stack.enter_async_context(alongside(repair.run(), "number repair"))
        await stack.enter_async_context(alongside(recovery.run(), "recovery"))
        doorman = Doorman(settings, sockets, inbound.announce)
        await stack.enter_async_context(alongside(doorman.run(), "doorman"))
        yield CallServices(
            livekit=livekit,
            sip=sip,
            webhook_receiver=WebhookReceiver(TokenVerifier(key, secret)),
            tokens=tokens,
            rooms=rooms,
            outbound=outbound,
            inbound=inbound,
            recovery=recovery,
            web_calls=web_calls,
            stream_sessions=stream_sessions,
            twilio_sessions=twilio_sessions,
            stream_workers=stream_workers,
            tasks=tasks,
            transfers=transfers,
            handover=Handover(livekit, app[STORE], app[TIMELINE]),
            recording_control=RecordingControl(
                livekit=livekit,
                store=app[STORE],
                timeline=app[TIMELINE],
                tokens=tokens,
                sessions=stream_sessions,
            ),
            provisioner=provisioner,
        )


async def _adopt(
    call: Call,
    *,
    outbound: Outbound,
    inbound: Inbound,
    web_calls: WebCalls,
    stream_sessions: StreamSessions,
    reconciler: Reconciler,
) -> None:
    """Follow a call whose gateway is gone, and have the reconciler look for what else it left."""
    reconciler.hurry()
    if call.type == "stream":
        stream_sessions.follow(call.id)
    elif call.direction == "web":
        web_calls.adopt(call)
    elif call.direction == "inbound":
        with contextlib.suppress(*LIVEKIT_ERRORS):  # the reconciler looks, too
            await inbound.adopt(call)
    else:
        await outbound.adopt(call)


@contextlib.asynccontextmanager
async def _tasks(
    app: web.Application, accounts: Accounts, twilio: TwilioSessions
) -> AsyncIterator[Tasks]:
    clock, settings = app[CLOCK], app[SETTINGS]
    progress = Progress(app[TIMELINE], app[METRICS])
    dialler = Dialler(
        tasks=app[TASKS],
        agents=app[AGENTS],
        numbers=app[NUMBERS],
        webhooks=app[WEBHOOKS],
        accounts=accounts,
        policy=app[POLICY],
        limits=app[LIMITS],
        progress=progress,
        settings=settings,
        resume_url=partial(twilio.callback, what="resume"),
        clock=clock,
    )
    runner = TaskRunner(
        tasks=app[TASKS],
        store=app[STORE],
        sessions=app[SESSIONS],
        accounts=accounts,
        dialler=dialler,
        progress=progress,
        clock=clock,
    )
    tasks = Tasks(
        tasks=app[TASKS],
        store=app[STORE],
        sessions=app[SESSIONS],
        accounts=accounts,
        dialler=dialler,
        progress=progress,
        runner=runner,
    )
    try:
        async with alongside(runner.run(), "tasks"):
            yield tasks
    finally:
        await runner.aclose(min(5.0, settings.shutdown_grace_s))
