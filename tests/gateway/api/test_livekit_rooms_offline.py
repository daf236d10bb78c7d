"""/livekit/* and /sip/transfer when LiveKit is not configured, does not answer, or refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from livekit.api import LiveKitAPI, ServerError, SipCallError

from core.errors import NotFound, ServerFault, Unavailable
from core.settings import Settings
from gateway.auth.tokens import Authenticator, authentication
from gateway.calls.policy import DialPolicy
from gateway.calls.rooms import LiveKitRooms
from gateway.http.host_names import Names
from gateway.keys import CALL_SERVICES, POLICY, SETTINGS, CallServices
from gateway.routes import ROUTES
from gateway.store.database import Database
from gateway.store.room_names import RoomNames
from sip.twirp import livekit_errors
from tests.support.edge import Served, make_app, served

pytestmark = pytest.mark.unit

REQUESTS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/livekit/rooms", None),
    ("GET", "/livekit/rooms/r", None),
    ("DELETE", "/livekit/participant", {"room_name": "r", "participant_identity": "i"}),
    (
        "POST",
        "/livekit/participant/mute",
        {"room_name": "r", "participant_identity": "i", "track_sid": "TR_x", "muted": True},
    ),
    (
        "POST",
        "/sip/transfer",
        {"room_name": "r", "participant_identity": "i", "transfer_to": "1234"},
    ),
    (
        "POST",
        "/livekit/token",
        {"room_name": "r", "participant_name": "n", "participant_identity": "i"},
    ),
]


def app_of(services: CallServices | None) -> web.Application:
    settings = Settings(_env_file=None)
    routes = [
        r
        for r in ROUTES
        if (r.method, r.path.replace("{name}", "r"))
        in {(method, path) for method, path, _ in REQUESTS}
    ]
    app = make_app(routes, authentication(Authenticator.from_settings(settings), Names(settings)))
    app[SETTINGS] = settings
    app[CALL_SERVICES] = services
    app[POLICY] = DialPolicy()
    return app


@pytest.fixture
async def unconfigured() -> AsyncIterator[Served]:
    async with served(app_of(None)) as at:
        yield at


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
async def test_without_keys(
    unconfigured: Served, method: str, path: str, body: dict[str, Any] | None
) -> None:
    async with unconfigured.http.request(method, path, json=body) as response:
        assert response.status == 500
        assert (await response.json())["code"] == "LIVEKIT_NOT_CONFIGURED"


async def test_livekit_is_not_there(unused_tcp_port: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    database = await Database.open(f"sqlite:///{tmp_path}/test.db")
    async with aiohttp.ClientSession() as session:
        livekit = LiveKitAPI(url, "key", "secret" * 8, session=session)
        others: dict[str, Any] = dict.fromkeys(field.name for field in fields(CallServices))
        others |= {"livekit": livekit, "rooms": LiveKitRooms(livekit, RoomNames(database))}
        app = app_of(CallServices(**others))
        async with served(app) as at, at.http.get("/livekit/rooms") as response:
            assert response.status == 503
            assert response.headers["Retry-After"]
            assert (await response.json())["code"] == "LIVEKIT_UNAVAILABLE"
    await database.close()


def test_what_livekit_says_becomes_what_we_say() -> None:
    missing = NotFound("Participant not found", code="PARTICIPANT_NOT_FOUND")
    hush = "hush: upstream text"
    cases: list[tuple[BaseException, type[Exception], str]] = [
        (ServerError("not_found", hush, status=404), NotFound, "PARTICIPANT_NOT_FOUND"),
        (ServerError("permission_denied", hush, status=403), ServerFault, "CALL_FAILED"),
        (ServerError("resource_exhausted", hush, status=429), Unavailable, "LIVEKIT_UNAVAILABLE"),
        (ServerError("unavailable", hush, status=503), Unavailable, "LIVEKIT_UNAVAILABLE"),
        (aiohttp.ClientConnectionError(hush), Unavailable, "LIVEKIT_UNAVAILABLE"),
        (TimeoutError(hush), Unavailable, "LIVEKIT_UNAVAILABLE"),
    ]
    for error, kind, code in cases:
        with pytest.raises(kind) as caught, livekit_errors(missing, failed="CALL_FAILED"):
            raise error
        assert getattr(caught.value, "code", None) == code
        assert "hush" not in str(caught.value)


def test_a_sip_refusal_keeps_its_status_only() -> None:
    meta = {"sip_status_code": "486", "sip_status": "hush", "error_details": "hush"}
    error = SipCallError("resource_exhausted", "hush", status=429, metadata=meta)
    with pytest.raises(ServerFault) as caught, livekit_errors(failed="CALL_FAILED"):
        raise error
    assert caught.value.code == "CALL_FAILED"
    assert [(d.field, d.message) for d in caught.value.details] == [("sip_status_code", "486")]


def test_other_errors_pass() -> None:
    for error in (KeyError("bug"), asyncio.CancelledError(), NotFound("ours")):
        with pytest.raises(type(error)), livekit_errors():
            raise error
