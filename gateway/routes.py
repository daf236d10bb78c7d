"""The list of all routes; each module of gateway.api defines its own."""

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
from gateway.api.recordings import audio, control, export, picture
from gateway.api.streams import (
    agent_session,
    task_callbacks,
    tasks,
    transfer_callbacks,
    twilio,
)
from gateway.http.route import Route, chapter

ROUTES: tuple[Route, ...] = (
    *chapter("SIP", sip_call.ROUTES, sip_transfer.ROUTES),
    *chapter("LiveKit", livekit_rooms.ROUTES),
    *chapter("Agents", agents.ROUTES),
    *chapter("Calls", calls.ROUTES, call_create.ROUTES, web_calls.ROUTES),
    *chapter("Calls", call_end.ROUTES, call_streams.ROUTES),
    *chapter("Calls", audio.ROUTES, picture.ROUTES, control.ROUTES),
    *chapter("Sessions", sessions.ROUTES, agent_session.ROUTES, twilio.ROUTES),
    *chapter("Sessions", transfer_callbacks.ROUTES, tasks.ROUTES, task_callbacks.ROUTES),
    *chapter("Recordings", export.ROUTES),
    *chapter("Credentials", credentials.ROUTES),
    *chapter("Phone numbers", numbers.ROUTES, numbers_v1.ROUTES),
    *chapter("Calls", try_page.ROUTES),
    *chapter("LiveKit", livekit_webhook.ROUTES),
    *chapter("Webhooks", webhooks.ROUTES),
    *chapter("Health", health.ROUTES),
    *chapter("Internal", worker.ROUTES),
)
