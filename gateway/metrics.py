"""What Prometheus is told. Labels come from small closed sets: never a number, a tenant, an id."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.aiohttp import make_aiohttp_handler

from gateway.route import route_of
from sip.dial import DialOutcome


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
        self.events = Counter(
            "switchroom_call_events_total",
            "Events appended to timelines.",
            ["source"],
            registry=self.registry,
        )
        self.workers = Gauge(
            "switchroom_workers", "Live workers, as of the last look.", registry=self.registry
        )

    def dialled(self, outcome: DialOutcome) -> None:
        self._dials.labels(outcome.reason or "answered", str(outcome.sip_status_code or "")).inc()

    def handler(self) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        return make_aiohttp_handler(self.registry)

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
