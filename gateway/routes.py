"""The table of contents of the API: each module says what it serves and may answer."""

from __future__ import annotations

from gateway import (
    agents,
    call_create,
    call_end,
    call_streams,
    calls,
    credentials,
    health,
    hooks,
    internal,
    internal_transfers,
    numbers,
    numbers_v1,
    rooms,
    sessions,
    sip_call,
    transfer,
    try_page,
    web_calls,
    webhooks,
)
from gateway.route import Route

ROUTES: tuple[Route, ...] = (
    *sip_call.ROUTES,
    *transfer.ROUTES,
    *rooms.ROUTES,
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
    *webhooks.ROUTES,
    *hooks.ROUTES,
    *health.ROUTES,
    *internal.ROUTES,
    *internal_transfers.ROUTES,
)
