"""A recording to look at: its levels as JSON, and as a picture."""

from __future__ import annotations

from aiohttp import hdrs, web
from pydantic import BaseModel, ConfigDict, Field

from core.models import Model
from gateway.api.recordings import fault
from gateway.api.recordings.opening import opened
from gateway.http.body import parse_query
from gateway.http.route import Route
from gateway.keys import STORE, WORKSHOP
from gateway.recordings.waveform import WIDTH, waveform

_PRIVATE: dict[str, str] = {hdrs.CACHE_CONTROL: "private, no-store"}
# An SVG that a browser opens by itself is a page.
_PICTURE: dict[str, str] = {
    **_PRIVATE,
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


class PeaksQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int = Field(WIDTH, ge=1, le=4000, description="The number of windows.")


class PeaksView(Model):
    duration_ms: int
    window_ms: float
    caller: list[float] = Field(description="The highest level of each window, 0 to 1.")
    agent: list[float]


async def peaks(request: web.Request) -> web.StreamResponse:
    query = parse_query(request, PeaksQuery)
    found = await opened(request)
    await found.note(request, "peaks")
    levels = await request.app[WORKSHOP].peaks(found.recording, query.width)
    view = PeaksView(
        duration_ms=levels.duration_ms,
        window_ms=levels.window_ms,
        caller=levels.caller,
        agent=levels.agent,
    )
    return web.json_response(view.wire(), headers=_PRIVATE)


async def picture(request: web.Request) -> web.StreamResponse:
    found = await opened(request)
    await found.note(request, "waveform")
    levels = await request.app[WORKSHOP].peaks(found.recording, WIDTH)
    turns = await request.app[STORE].turns(found.call.id)
    return web.Response(
        text=waveform(levels, turns), content_type="image/svg+xml", headers=_PICTURE
    )


_ERRORS = (*fault.OPENING, *fault.DECODING)

ROUTES: tuple[Route, ...] = (
    Route(
        "GET /v1/calls/{id}/recording/peaks",
        peaks,
        "The levels of a call's recording, for drawing",
        query=PeaksQuery,
        answer=PeaksView,
        errors=_ERRORS,
    ),
    Route(
        "GET /v1/calls/{id}/recording/waveform.svg",
        picture,
        "A picture of a call's recording, with the turns marked",
        content="image/svg+xml",
        errors=_ERRORS,
    ),
)
