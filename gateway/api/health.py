"""Liveness and readiness, for operators."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import aiohttp
from aiohttp import web
from google.protobuf.message import DecodeError
from livekit.api import ServerError
from livekit.protocol.room import ListRoomsRequest
from pydantic import BaseModel, Field

from core.errors import AppError
from gateway.api import faults
from gateway.http.body import parse_query
from gateway.http.route import Route
from gateway.keys import (
    CALL_SERVICES,
    DATABASE,
    METRICS,
    SETTINGS,
    STOPPING,
    STORE,
    WRITE_PROBE,
    CallServices,
)
from gateway.store.database import Database
from gateway.store.places.fleet import Kind
from gateway.store.write_probe import WriteProbe

_CHECK_DEADLINE_S = 2.0


class Readiness(BaseModel):
    needs: Literal["calls", "database"] = Field(
        "calls", description="database: 200 also while LiveKit is away, as for streams."
    )


async def root(_request: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "OK"})


async def healthz(_request: web.Request) -> web.StreamResponse:
    """Respond while the process serves requests."""
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.StreamResponse:
    """200 if calls can be placed; otherwise 503 and the reasons. ``needs=database``: 200 also
    without LiveKit, as streams are served all the same.

    Workers are counted but do not affect the status: without any, the gateway still serves
    requests, and clearly refuses each call that needs an agent.
    """
    app = request.app
    needs = parse_query(request, Readiness).needs
    database, livekit = await asyncio.gather(
        _database(app[DATABASE], app[WRITE_PROBE]), _livekit(app[CALL_SERVICES])
    )
    nobody: dict[str, int] = {"live": 0, "free": 0}
    workers, stream_workers = nobody, nobody
    if database is None:
        workers = await _counted(app, "room")
        stream_workers = await _counted(app, "stream")
    missing = [problem for problem in (database, livekit) if problem]
    ready = not (database or (livekit and needs == "calls"))
    if app[STOPPING].is_set():
        missing.append("the gateway is stopping")
        ready = False
    answer: dict[str, Any] = {
        "status": "ready" if ready else "not ready",
        "missing": missing,
        "workers": workers,
        "streamWorkers": stream_workers,
    }
    return web.json_response(answer, status=200 if ready else 503)


async def _counted(app: web.Application, kind: Kind) -> dict[str, int]:
    settings = app[SETTINGS]
    fleet = await app[STORE].places.fleet(settings.agent_name, kind, settings.ring_while_full_s)
    app[METRICS].counted_places(fleet)
    return {"live": len(fleet.members), "free": fleet.free}


async def _database(database: Database, writes: WriteProbe) -> str | None:
    try:
        async with asyncio.timeout(_CHECK_DEADLINE_S):
            await database.ping()
    except (AppError, TimeoutError):
        return "the database does not answer (DATABASE_URL)"
    if not await writes.ok():
        return "the database takes no writes (is its disk full, or does another process lock it?)"
    return None


async def _livekit(services: CallServices | None) -> str | None:
    if services is None:
        return "LiveKit is not configured (LIVEKIT_API_KEY, LIVEKIT_API_SECRET)"
    try:
        async with asyncio.timeout(_CHECK_DEADLINE_S):
            await services.livekit.room.list_rooms(ListRoomsRequest(names=["-"]))
    except ServerError as error:
        return f"LiveKit refuses us ({error.code}): check LIVEKIT_API_KEY and LIVEKIT_API_SECRET"
    except (aiohttp.ClientError, TimeoutError, DecodeError, AttributeError):
        # The last two: LIVEKIT_URL leads to another server, whose response the SDK cannot parse.
        return "LiveKit does not answer (LIVEKIT_URL)"
    return None


ROUTES: tuple[Route, ...] = (
    Route("GET /", root, "The service answers", public=True),
    Route("GET /healthz", healthz, "Liveness", public=True),
    Route(
        "GET /readyz",
        readyz,
        "Readiness, and what is missing",
        public=True,
        query=Readiness,
        errors=(faults.UNAVAILABLE,),
    ),
)
