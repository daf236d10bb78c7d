"""Prometheus metrics. Labels come from small closed sets: never a number, a tenant or an id."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal, get_args

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from core.events import Source
from core.models import Turn
from core.recovery import Why
from gateway.http.route import route_of
from gateway.store.places.fleet import Fleet
from sip.dial import DialOutcome

Unrecovered = Literal["poison", "nobody"]

# The parts of Turn.latency, and histogram bounds (s) that separate good turns from slow ones.
_TURN_PARTS = frozenset({"endpointing", "stt", "llm", "tools", "tts", "transport", "total"})
_TURN_BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.5, 2, 3, 5, 10)

_RECOVERY_BUCKETS = (0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60)
_WHY = frozenset(get_args(Why))


class Metrics:
    """One registry per application, so that tests can run several in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "switchroom_http_request_seconds",
            "Time to the answer's headers, by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._dials = Counter(
            "switchroom_dials_total",
            "Outbound dials by verdict and SIP status.",
            ["verdict", "sip_status"],
            registry=self.registry,
        )
        self._events = Counter(
            "switchroom_call_events_total",
            "Events appended to timelines.",
            ["source"],
            registry=self.registry,
        )
        self._turns = Histogram(
            "switchroom_turn_latency_seconds",
            "Parts of an agent's time to answer a caller, of calls that are over.",
            ["part"],
            buckets=_TURN_BUCKETS,
            registry=self.registry,
        )
        self._lost = Counter(
            "switchroom_agents_lost_total",
            "Agents that were lost in a call, by what became of them.",
            ["why"],
            registry=self.registry,
        )
        self._unrecovered = Counter(
            "switchroom_calls_unrecovered_total",
            "Calls that ended because no other agent took over.",
            ["reason"],
            registry=self.registry,
        )
        for label in get_args(Why):  # 0, so that the first one is an increase
            self._lost.labels(label)
        for reason in get_args(Unrecovered):
            self._unrecovered.labels(reason)
        self._resumed = Histogram(
            "switchroom_agent_recovery_seconds",
            "From a lost agent's last sign of life to the first word of the next one.",
            ["why"],
            buckets=_RECOVERY_BUCKETS,
            registry=self.registry,
        )
        self._workers = Gauge(
            "switchroom_workers",
            "Live workers for calls in rooms, or for streams, as of the last look.",
            ["kind"],
            registry=self.registry,
        )
        self._places = Gauge(
            "switchroom_places",
            "Calls that they can take, and those that they have.",
            ["kind", "state"],
            registry=self.registry,
        )
        self._waiting = Gauge(
            "switchroom_calls_waiting",
            "Calls that ring, or wait to be dialled, until a place is free.",
            ["kind"],
            registry=self.registry,
        )
        self.streams = Gauge(
            "switchroom_streams",
            "Clients' WebSockets of sessions that are open now.",
            registry=self.registry,
        )
        self.sockets_refused = Counter(
            "switchroom_sockets_refused_total",
            "WebSockets closed because too many others waited for their first message.",
            registry=self.registry,
        )

    def dialled(self, outcome: DialOutcome) -> None:
        self._dials.labels(outcome.reason or "answered", str(outcome.sip_status_code or "")).inc()

    def counted(self, source: Source, events: int) -> None:
        """Count a batch of ``events`` stored events."""
        self._events.labels(source).inc(events)

    def agent_lost(self, why: Why) -> None:
        self._lost.labels(why).inc()

    def agent_resumed(self, why: str, lost_ms: float | None) -> None:
        """``lost_ms``: since the former agent was lost; None: the worker did not tell."""
        if lost_ms is not None and lost_ms >= 0:
            self._resumed.labels(why if why in _WHY else "unknown").observe(lost_ms / 1000)

    def counted_places(self, fleet: Fleet) -> None:
        kind = fleet.kind
        self._workers.labels(kind).set(len(fleet.members))
        self._places.labels(kind, "free").set(fleet.free)
        self._places.labels(kind, "taken").set(fleet.taken)
        self._waiting.labels(kind).set(len(fleet.line))

    def unrecovered(self, reason: Unrecovered) -> None:
        self._unrecovered.labels(reason).inc()

    def conversed(self, turns: Iterable[Turn]) -> None:
        """Observe the latencies of a finished call's turns."""
        for turn in turns:
            for part, milliseconds in turn.latency.items():
                if part in _TURN_PARTS:
                    self._turns.labels(part).observe(milliseconds / 1000)

    async def scraped(self, request: web.Request) -> web.StreamResponse:
        """Answer what the scraper asks for. Collectors may block: they list a directory."""
        encode, content_type = choose_encoder(",".join(request.headers.getall(hdrs.ACCEPT, [])))
        asked = request.query.getall("name[]", [])
        registry = self.registry.restricted_registry(asked) if asked else self.registry
        body = await asyncio.to_thread(encode, registry)
        response = web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})
        response.enable_compression()
        return response

    @web.middleware
    async def middleware(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        started = time.perf_counter()
        response = await handler(request)
        route = route_of(request)
        self.requests.labels(
            request.method if route else "other",
            route.path if route else "none",
            str(response.status),
        ).observe(time.perf_counter() - started)
        return response
