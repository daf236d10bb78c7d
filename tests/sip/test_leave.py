"""sip.leave: a leg that has already left is no error, and only this module removes legs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from livekit.api import LiveKitAPI, RoomParticipantIdentity, ServerError
from livekit.protocol.models import ParticipantInfo

from core.legs import BRIDGE
from sip.dial import Dial, DialRequest, Trunk
from sip.leave import remove_leg, send_away
from tests.support.edge import served
from tests.support.inprocess import KEY, SECRET
from tests.support.legs import Legs
from tests.support.livekit_stub import agent, phone, reached

pytestmark = pytest.mark.unit

ROOM, IDENTITY = "room", "phone"
WHOM = RoomParticipantIdentity(room=ROOM, identity=IDENTITY)
SIP = Path(__file__).parent.parent.parent / "sip"


@pytest.fixture
def stub() -> Legs:
    return Legs()


@pytest.fixture
async def livekit(stub: Legs) -> AsyncIterator[LiveKitAPI]:
    async with reached(stub) as api:
        yield api


def leg(**changes: str) -> ParticipantInfo:
    return phone(IDENTITY, **{BRIDGE: "mark", "sip.callStatus": "ringing"}, **changes)


class TestSendAway:
    async def test_a_bridges_leg_leaves_by_itself(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.enter(ROOM, leg(), agent())
        assert await send_away(livekit, WHOM)
        assert (stub.asked, stub.removed) == ([IDENTITY], [])

    async def test_one_that_stays_is_removed(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.obeys = False
        stub.enter(ROOM, leg())
        assert await send_away(livekit, WHOM, leaves_within_s=0)
        assert (stub.asked, stub.removed) == ([IDENTITY], [(ROOM, IDENTITY)])

    async def test_whoever_comes_after_it_stays(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.returns = True
        stub.enter(ROOM, leg())
        assert await send_away(livekit, WHOM)
        assert stub.removed == []

    async def test_others_are_not_asked(self, stub: Legs, livekit: LiveKitAPI) -> None:
        """livekit-sip's legs and browsers do not answer, and each request takes up to 2 s."""
        connecting = leg()
        connecting.state = ParticipantInfo.State.JOINING
        for other in (
            phone(IDENTITY),
            ParticipantInfo(identity=IDENTITY, state=ParticipantInfo.State.ACTIVE),
            connecting,
        ):
            stub.enter(ROOM, other)
            assert await send_away(livekit, WHOM)
            assert (stub.asked, stub.removed.pop()) == ([], (ROOM, IDENTITY))

    async def test_nobody_is_there(self, stub: Legs, livekit: LiveKitAPI) -> None:
        assert not await send_away(
            livekit, RoomParticipantIdentity(room="elsewhere", identity=IDENTITY)
        )
        stub.enter(ROOM, leg())
        assert not await send_away(livekit, RoomParticipantIdentity(room=ROOM, identity="another"))
        assert (stub.asked, stub.removed) == ([], [])

    async def test_one_who_is_leaving_already(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.refusals, stub.vanishes = ["unavailable"], True
        stub.enter(ROOM, phone(IDENTITY))
        assert await send_away(livekit, WHOM)

    async def test_one_who_left_in_between(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.refusals = ["not_found"]
        stub.enter(ROOM, phone(IDENTITY))
        assert await send_away(livekit, WHOM)

    async def test_what_livekit_refuses_is_raised(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.refusals = ["unavailable"]
        stub.enter(ROOM, phone(IDENTITY))
        with pytest.raises(ServerError):
            await send_away(livekit, WHOM)
        stub.failing[ROOM] = "internal"
        with pytest.raises(ServerError):
            await send_away(livekit, WHOM)

    async def test_a_dial_that_is_cancelled_asks_first(
        self, stub: Legs, livekit: LiveKitAPI
    ) -> None:
        """The phone may have answered, and removing an active leg leaks memory."""
        held = asyncio.Event()
        async with served(silent(held)) as sip_service:
            sip = LiveKitAPI(f"http://127.0.0.1:{sip_service.port}", KEY, SECRET, failover=False)
            async with sip:
                request = DialRequest(
                    trunk=Trunk(address="sip.example"),
                    from_number="+15105550123",
                    to_number="+15551230000",
                    room_name=ROOM,
                    participant_identity=IDENTITY,
                    participant_name="",
                )
                dial = Dial(sip, livekit, request)
                stub.enter(ROOM, leg())
                await dial.cancel()
                assert (stub.asked, stub.removed) == ([IDENTITY], [])
                held.set()
                await dial.aclose()


def silent(until: asyncio.Event) -> web.Application:
    """Return a SIP service that does not respond before ``until`` is set."""

    async def wait(_: web.Request) -> web.Response:
        await until.wait()
        return web.Response(status=503)

    app = web.Application()
    app.router.add_post("/{any:.*}", wait)
    return app


def removing(answer: Exception | None) -> Any:
    async def remove_participant(whom: RoomParticipantIdentity) -> None:
        assert whom == WHOM
        if answer is not None:
            raise answer

    return SimpleNamespace(room=SimpleNamespace(remove_participant=remove_participant))


@pytest.mark.parametrize("answer", [None, ServerError("not_found", "no", status=404)])
async def test_one_who_is_there_or_has_left(answer: Exception | None) -> None:
    await remove_leg(removing(answer), WHOM)


@pytest.mark.parametrize("answer", [ServerError("unavailable", "", status=503), TimeoutError()])
async def test_what_could_not_be_done_is_told(answer: Exception) -> None:
    with pytest.raises(type(answer)):
        await remove_leg(removing(answer), WHOM)


def test_nobody_else_in_sip_removes() -> None:
    asks = [path for path in SIP.rglob("*.py") if "remove_participant(" in path.read_text()]
    assert asks == [SIP / "leave.py"]
