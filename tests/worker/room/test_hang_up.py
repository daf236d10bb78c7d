"""Tests of worker.room.hang_up: legs are asked to leave, others removed until they are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from livekit import rtc
from livekit.api import LiveKitAPI

from core.legs import BRIDGE, LEAVE_METHOD
from tests.support.edge import served
from tests.support.inprocess import KEY, SECRET
from tests.support.livekit_stub import LiveKitStub, phone
from worker import server
from worker.room import hang_up
from worker.room.hang_up import send_away

pytestmark = [pytest.mark.store, pytest.mark.attack]

ROOM, IDENTITY = "room", "caller"
HANG = "hang"


class Failing(LiveKitStub):
    """Fails the first removals, each in its own way; ``hang`` never answers."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        self.ways = list(ways)
        self.asked = 0

    def app(self) -> web.Application:
        @web.middleware
        async def fail(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not request.path.endswith("/RemoveParticipant"):
                return await handler(request)
            self.asked += 1
            match self.ways.pop(0) if self.ways else None:
                case None:
                    return await handler(request)
                case "hang":
                    await asyncio.Event().wait()
                case "cut":
                    assert request.transport is not None
                    request.transport.abort()
                case way:
                    return web.json_response({"code": way, "msg": ""}, status=500)
            raise AssertionError("not reached")

        app = super().app()
        app.middlewares.append(fail)
        return app


class Legs:
    """The legs in a room: what they were asked, and whether they obey."""

    def __init__(self, *, obey: bool = True) -> None:
        self.obey = obey
        self.asked: list[str] = []

    async def perform_rpc(self, *, destination_identity: str, method: str, **_: Any) -> str:
        assert destination_identity == IDENTITY
        self.asked.append(method)
        if not self.obey:
            raise rtc.RpcError(rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD, "no such method")
        return ""


def room_of(legs: Legs, whom: object = None) -> rtc.Room:
    participants = {} if whom is None else {IDENTITY: whom}
    room = SimpleNamespace(name=ROOM, local_participant=legs, remote_participants=participants)
    return cast(rtc.Room, room)


def nobody_in_it() -> rtc.Room:
    """Return a room as a worker that has lost it sees it."""
    return room_of(Legs())


def leg(status: str = "active", *, bridge: bool = True, kind: str = "SIP") -> object:
    attributes = {"sip.callStatus": status, **({BRIDGE: "1"} if bridge else {})}
    number = rtc.ParticipantKind.Value(f"PARTICIPANT_KIND_{kind}")
    return SimpleNamespace(kind=number, attributes=attributes)


@asynccontextmanager
async def serving(livekit: LiveKitStub) -> AsyncIterator[LiveKitAPI]:
    async with served(livekit.app()) as edge:
        api = LiveKitAPI(f"http://127.0.0.1:{edge.port}", KEY, SECRET, failover=False)
        try:
            yield api
        finally:
            await api.aclose()


async def send_away_quickly(api: LiveKitAPI, *, within_s: float = hang_up.HANG_UP_WITHIN_S) -> None:
    """Send the phone away with short attempts and no delay between them."""
    await send_away(
        nobody_in_it(),
        api,
        IDENTITY,
        told=True,
        within_s=within_s,
        attempt_within_s=0.2,
        retry_after_s=0,
    )


@pytest.mark.parametrize(
    "ways",
    [
        [],
        ["unavailable"] * 2,
        ["unavailable"] * 5,
        ["internal", "deadline_exceeded", "unavailable", "resource_exhausted"],
        [HANG] * 3,
        ["cut"] * 3,
        [HANG, "unavailable", "cut", "internal"],
    ],
)
async def test_a_hang_up_is_tried_until_it_is_done(ways: list[str]) -> None:
    livekit = Failing(*ways)
    livekit.enter(ROOM, phone(IDENTITY))
    async with serving(livekit) as api:
        await send_away_quickly(api)
    assert livekit.removed == [(ROOM, IDENTITY)]
    assert livekit.asked == len(ways) + 1


async def test_one_who_left_meanwhile_is_not_asked_for_again() -> None:
    livekit = Failing("unavailable")
    async with serving(livekit) as api:
        await send_away_quickly(api)
    assert livekit.asked == 2


async def test_a_livekit_that_is_gone_holds_no_job_for_ever() -> None:
    livekit = Failing(*["unavailable"] * 100_000)
    async with serving(livekit) as api:
        await asyncio.wait_for(send_away_quickly(api, within_s=0.3), 10)
    assert livekit.asked > 2
    assert livekit.removed == []


def test_a_job_may_last_as_long_as_its_hang_up() -> None:
    assert hang_up.HANG_UP_WITHIN_S < server._SESSION_END_TIMEOUT_S


END_CALL = "lk.sip.EndCall"


@pytest.mark.parametrize(
    ("whom", "told", "method"),
    [
        (leg(), True, END_CALL),
        (leg(), False, LEAVE_METHOD),
        (leg(bridge=False), True, END_CALL),
        # Only the bridge's legs can leave as if they had been removed.
        (leg(bridge=False), False, None),
        # It has not answered, so the dial must be canceled.
        (leg("ringing"), False, None),
        (leg(kind="STANDARD"), True, None),
    ],
)
async def test_a_leg_leaves_by_itself_if_it_can(whom: object, told: bool, method: str) -> None:
    """Removing a leg leaks half a megabyte and some threads."""
    livekit, legs = LiveKitStub(), Legs()
    livekit.enter(ROOM, phone(IDENTITY))
    async with serving(livekit) as api:
        await send_away(room_of(legs, whom), api, IDENTITY, told=told)
    assert legs.asked == ([method] if method else [])
    assert livekit.removed == ([] if method else [(ROOM, IDENTITY)])


@pytest.mark.parametrize("told", [True, False])
async def test_a_leg_that_does_not_is_removed(told: bool) -> None:
    livekit, legs = LiveKitStub(), Legs(obey=False)
    livekit.enter(ROOM, phone(IDENTITY))
    async with serving(livekit) as api:
        await send_away(room_of(legs, leg()), api, IDENTITY, told=told)
    assert len(legs.asked) == 1
    assert livekit.removed == [(ROOM, IDENTITY)]
