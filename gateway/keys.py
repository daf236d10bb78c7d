"""The application's resources, by typed key; those that need LiveKit share one key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from aiohttp import web

from core.errors import ServerFault
from core.settings import Settings

if TYPE_CHECKING:
    from livekit.api import LiveKitAPI, WebhookReceiver

    from core.tokens import TokenIssuer
    from gateway.auth.tokens import Authenticator
    from gateway.calls.handover import Handover
    from gateway.calls.inbound import Inbound
    from gateway.calls.limits import CallLimits
    from gateway.calls.outbound import Outbound
    from gateway.calls.policy import DialPolicy
    from gateway.calls.recovery.service import Recovery
    from gateway.calls.rooms import LiveKitRooms
    from gateway.calls.streams.sessions import StreamSessions
    from gateway.calls.streams.twilio import TwilioSessions
    from gateway.calls.streams.workers import StreamWorkers
    from gateway.calls.tasks.service import Tasks
    from gateway.calls.timeline import Timeline
    from gateway.calls.transfers import Transfers
    from gateway.calls.web import WebCalls
    from gateway.http.metrics import Metrics
    from gateway.http.newcomers import Newcomers
    from gateway.http.streams import StreamLimit
    from gateway.lookup.agents import Agents
    from gateway.lookup.numbers import Numbers
    from gateway.numbers.provisioning import Provisioner
    from gateway.numbers.service import NumberService
    from gateway.recordings.control import RecordingControl
    from gateway.recordings.exporter import Exporter
    from gateway.recordings.links import Links
    from gateway.recordings.listeners import Listeners
    from gateway.recordings.service import RecordingService
    from gateway.recordings.workshop import Workshop
    from gateway.store.agents import AgentStore
    from gateway.store.calls import Store
    from gateway.store.credentials import CredentialStore, Vault
    from gateway.store.database import Database
    from gateway.store.deliveries import Deliveries
    from gateway.store.gateways.gateways import Gateways
    from gateway.store.numbers import NumberStore
    from gateway.store.outbox import Outbox
    from gateway.store.recordings.exports import Exports
    from gateway.store.room_names import RoomNames
    from gateway.store.streams.sessions import SessionStore
    from gateway.store.streams.tasks import TaskStore
    from gateway.store.webhooks import WebhookStore
    from gateway.store.write_probe import WriteProbe
    from gateway.webhooks.sender import Sender
    from sip.guard import SipGuard


@dataclass(frozen=True, slots=True, kw_only=True)
class CallServices:
    """The services that need LiveKit."""

    livekit: LiveKitAPI
    """The client of LIVEKIT_URL."""
    sip: LiveKitAPI
    """The client of LIVEKIT_SIP_URL (only its ``sip`` service is used)."""
    webhook_receiver: WebhookReceiver
    """Checks the signatures of LiveKit's webhooks."""
    tokens: TokenIssuer
    """Signs for workers."""
    rooms: LiveKitRooms
    """Decides who may use which room."""
    outbound: Outbound
    """Places calls."""
    inbound: Inbound
    recovery: Recovery
    """Admits callers."""
    web_calls: WebCalls
    """Opens calls for browsers."""
    stream_sessions: StreamSessions
    """Opens calls on WebSockets, and attaches sockets to them."""
    twilio_sessions: TwilioSessions
    """Answers Twilio about calls whose audio comes by Media Streams."""
    stream_workers: StreamWorkers
    """The workers that serve those calls."""
    tasks: Tasks
    """Places calls by Twilio's REST API, and repeats them."""
    transfers: Transfers
    """Transfers callers."""
    handover: Handover
    """Ends transferred calls."""
    recording_control: RecordingControl
    """Has workers pause, resume and mask."""
    provisioner: Provisioner
    """Attaches numbers to LiveKit's SIP service, and detaches them."""


CALL_SERVICES: web.AppKey[CallServices | None] = web.AppKey("call_services")
"""None without LiveKit keys; ``call_services`` raises then."""
SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)
AUTHENTICATOR: web.AppKey[Authenticator] = web.AppKey("authenticator")
"""For tokens that come in another way than the Authorization header of an HTTP request."""
DATABASE: web.AppKey[Database] = web.AppKey("database")
WRITE_PROBE: web.AppKey[WriteProbe] = web.AppKey("write_probe")
STORE: web.AppKey[Store] = web.AppKey("store")
ROOM_NAMES: web.AppKey[RoomNames] = web.AppKey("room_names")
"""The holds on names of rooms; ``CallServices.rooms`` decides by them."""
SESSIONS: web.AppKey[SessionStore] = web.AppKey("sessions")
"""What calls on WebSockets need beside their records."""
TASKS: web.AppKey[TaskStore] = web.AppKey("tasks")
"""The tasks, for lists; ``CallServices.tasks`` makes and cancels them."""
AGENT_STORE: web.AppKey[AgentStore] = web.AppKey("agent_store")
"""Agents made through the API, for changes; use AGENTS to look one up for a call."""
NUMBERS: web.AppKey[NumberStore] = web.AppKey("numbers")
"""Numbers, for changes, lists and search by number; use NUMBER_LOOKUP to look one up for a call."""
NUMBER_SERVICE: web.AppKey[NumberService] = web.AppKey("number_service")
"""The API's operations on numbers."""
GATEWAYS: web.AppKey[Gateways] = web.AppKey("gateways")
CREDENTIALS: web.AppKey[CredentialStore] = web.AppKey("credentials")
VAULT: web.AppKey[Vault] = web.AppKey("vault")
WEBHOOKS: web.AppKey[WebhookStore] = web.AppKey("webhooks")
"""The endpoints of webhooks."""
OUTBOX: web.AppKey[Outbox] = web.AppKey("outbox")
"""The events to be delivered to webhooks."""
DELIVERIES: web.AppKey[Deliveries] = web.AppKey("deliveries")
"""The API's view of those events."""
WEBHOOK_SENDER: web.AppKey[Sender] = web.AppKey("webhook_sender")
"""Sends those events."""
RECORDINGS: web.AppKey[RecordingService] = web.AppKey("recordings")
"""The recordings of calls; its ``rows`` are those of the database."""
WORKSHOP: web.AppKey[Workshop] = web.AppKey("workshop")
"""Decodes recordings."""
LINKS: web.AppKey[Links | None] = web.AppKey("links")
"""Makes and checks the links to recordings; None without LiveKit keys."""
LISTENERS: web.AppKey[Listeners] = web.AppKey("listeners")
"""Puts on timelines who listened to recordings."""
EXPORTS: web.AppKey[Exports] = web.AppKey("exports")
"""The jobs that copy recordings."""
EXPORTER: web.AppKey[Exporter] = web.AppKey("exporter")
"""Works on those jobs."""
TIMELINE: web.AppKey[Timeline] = web.AppKey("timeline")
AGENTS: web.AppKey[Agents] = web.AppKey("agents")
NUMBER_LOOKUP: web.AppKey[Numbers] = web.AppKey("number_lookup")
METRICS: web.AppKey[Metrics] = web.AppKey("metrics")
POLICY: web.AppKey[DialPolicy] = web.AppKey("policy")
"""Decides which numbers may be called."""
SIP_GUARD: web.AppKey[SipGuard] = web.AppKey("sip_guard")
"""Decides which SIP addresses tenants may use."""
LIMITS: web.AppKey[CallLimits] = web.AppKey("limits")
"""Limits a tenant's calls; ``LIMITS.insert`` stores the record of a new call."""
STREAMS: web.AppKey[StreamLimit] = web.AppKey("streams")
"""Limits a tenant's event streams and long polls."""
NEWCOMERS: web.AppKey[Newcomers] = web.AppKey("newcomers")
"""Limits the WebSockets that have not yet shown who they are."""
CLOCK: web.AppKey[Callable[[], datetime]] = web.AppKey("clock")
"""Tells the time by which tokens, leases and holds end."""
STOPPING: web.AppKey[asyncio.Event] = web.AppKey("stopping", asyncio.Event)
"""Set when the gateway begins to stop: streams end, and dials get their grace period."""


def call_services(app: web.Application) -> CallServices:
    """Return the services. Raises ServerFault ``LIVEKIT_NOT_CONFIGURED``."""
    services = app[CALL_SERVICES]
    if services is None:
        raise ServerFault("LiveKit is not configured", code="LIVEKIT_NOT_CONFIGURED")
    return services
