"""The table of contents of the API: each module says what it serves and may answer."""

from __future__ import annotations

from gateway import calls, credentials, health, internal, rooms, sip_call, transfer, webhooks
from gateway.route import Route

ROUTES: tuple[Route, ...] = (
    *sip_call.ROUTES,
    *transfer.ROUTES,
    *rooms.ROUTES,
    *calls.ROUTES,
    *credentials.ROUTES,
    *webhooks.ROUTES,
    *health.ROUTES,
    *internal.ROUTES,
)
