"""The table of contents of the API: each module says what it serves and may answer."""

from __future__ import annotations

from gateway.api import (
    agents,
    call_create,
    call_end,
    call_streams,
    calls,
    credentials,
    health,
    livekit_rooms,
    livekit_webhook,
    numbers,
    numbers_v1,
    sessions,
    sip_call,
    sip_transfer,
    try_page,
    web_calls,
    webhooks,
    worker,
)
from gateway.http.route import Route

ROUTES: tuple[Route, ...] = (
    *sip_call.ROUTES,
    *sip_transfer.ROUTES,
    *livekit_rooms.ROUTES,
    *agents.ROUTES,
    *calls.ROUTES,
    *call_create.ROUTES,
    *web_calls.ROUTES,
    *call_end.ROUTES,
    *call_streams.ROUTES,
    *sessions.ROUTES,
    *credentials.ROUTES,
    *numbers.ROUTES,
    *numbers_v1.ROUTES,
    *try_page.ROUTES,
    *livekit_webhook.ROUTES,
    *webhooks.ROUTES,
    *health.ROUTES,
    *worker.ROUTES,
)
