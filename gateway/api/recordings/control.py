"""``POST /v1/calls/{id}/recording/pause``, ``resume`` and ``mask``."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from core.recordings.command import MAX_MASK_S, Action
from gateway.api import faults
from gateway.api.calls import find
from gateway.http.body import parse_body
from gateway.http.idempotency import once
from gateway.http.principal import PRINCIPAL
from gateway.http.route import Faults, Route
from gateway.keys import STORE, call_services
from gateway.recordings.control import RecordingState


class Nothing(BaseModel):
    """A request without a body."""


class Mask(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seconds: int = Field(
        ge=1, le=MAX_MASK_S, strict=True, description="From now; replaces a mask in progress."
    )


async def pause(request: web.Request) -> web.StreamResponse:
    """Keep no audio, words or keys from now on; the agent hears and speaks on."""
    return await _command(request, "pause", Nothing())


async def resume(request: web.Request) -> web.StreamResponse:
    """End a pause, and a mask made by the API."""
    return await _command(request, "resume", Nothing())


async def mask(request: web.Request) -> web.StreamResponse:
    """Keep nothing for some seconds, in which the agent neither hears nor gets keys."""
    body = await parse_body(request, Mask)
    return await _command(request, "mask", body, body.seconds)


async def _command(
    request: web.Request, action: Action, body: BaseModel, seconds: int | None = None
) -> web.StreamResponse:
    async def effect() -> dict[str, Any]:
        call = await find(request)
        control = call_services(request.app).recording_control
        return (await control.command(call, action, seconds)).wire()

    return await once(request, request.app[STORE], request[PRINCIPAL], body, effect)


_FAULTS: Faults = (
    faults.NO_CALL,
    (409, "CALL_NOT_ANSWERED"),
    (409, "CALL_ENDED"),
    (409, "AGENT_LEFT"),
    *faults.LIVEKIT,
    faults.AGENT_UNAVAILABLE,
    faults.STORE,
)

ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/calls/{id}/recording/pause",
        pause,
        "Pause a call's recording",
        answer=RecordingState,
        errors=_FAULTS,
        idempotent=True,
    ),
    Route(
        "POST /v1/calls/{id}/recording/resume",
        resume,
        "Resume a call's recording",
        answer=RecordingState,
        errors=_FAULTS,
        idempotent=True,
    ),
    Route(
        "POST /v1/calls/{id}/recording/mask",
        mask,
        "Mask some seconds of a call",
        body=Mask,
        answer=RecordingState,
        errors=_FAULTS,
        idempotent=True,
    ),
)
