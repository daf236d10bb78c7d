"""Sending somebody away: a bridge's leg is asked to leave, everybody else is removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import pytest
from aiohttp import web
from google.protobuf.message import Message
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import PerformRpcRequest, PerformRpcResponse, RoomParticipantIdentity

from core.legs import BRIDGE, LEAVE_METHOD, Leg, Role
from gateway.calls.livekit import close_room, leg_of, present, send_away, send_away_or_log, tidy
from tests.support.edge import served
from tests.support.inprocess import KEY, SECRET
from tests.support.livekit_stub import LiveKitStub, Refusal, agent, phone

pytestmark = pytest.mark.unit

ROOM, IDENTITY = "room", "caller"


class Legs(LiveKitStub):
    """Asks legs to leave, as LiveKit passes a remote procedure call on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.obeys = True
        """Whether a leg that says that it leaves does so."""
        self.returns = False
        """Whether somebody else takes the identity of one that has left."""
        self.refusals: list[str] = []
        """Codes that the next removals are refused with."""
        self.vanishes = False
        """Whether one whose removal is refused is gone by then."""

    def app(self) -> web.Application:
        async def perform_rpc(request: web.Request) -> web.Response:
            asked = PerformRpcRequest.FromString(await request.read())
            assert asked.method == LEAVE_METHOD
            self.asked.append(asked.destination_identity)
            if self.obeys:
                self._take(asked.room, asked.destination_identity)
            if self.returns:
                self.enter(asked.room, phone(asked.destination_identity, "PA_next"))
            return web.Response(
                body=PerformRpcResponse(payload="{}").SerializeToString(),
                content_type="application/protobuf",
            )

        app = super().app()
        app.router.add_post("/twirp/livekit.RoomService/PerformRpc", perform_rpc)
        return app

    def _remove(self, asked: RoomParticipantIdentity) -> Message:
        if self.refusals:
            if self.vanishes:
                self._take(asked.room, asked.identity)
            raise Refusal(self.refusals.pop(0))
        return super()._remove(asked)

    def _take(self, room: str, identity: str) -> None:
        self.rooms[room] = [one for one in self.rooms[room] if one.identity != identity]


@pytest.fixture
def stub() -> Legs:
    return Legs()


@pytest.fixture
async def livekit(stub: Legs) -> AsyncIterator[LiveKitAPI]:
    async with served(stub.app()) as edge:
        api = LiveKitAPI(f"http://127.0.0.1:{edge.port}", KEY, SECRET, failover=False)
        try:
            yield api
        finally:
            await api.aclose()


def leg(**changes: str) -> ParticipantInfo:
    return phone(IDENTITY, **{BRIDGE: "mark", "sip.callStatus": "ringing"}, **changes)


class TestSendAway:
    async def test_a_bridges_leg_leaves_by_itself(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.enter(ROOM, leg(), agent())
        assert await send_away(livekit, ROOM, IDENTITY)
        assert (stub.asked, stub.removed) == ([IDENTITY], [])

    async def test_one_that_stays_is_removed(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.obeys = False
        stub.enter(ROOM, leg())
        assert await send_away(livekit, ROOM, IDENTITY, leaves_within_s=0)
        assert (stub.asked, stub.removed) == ([IDENTITY], [(ROOM, IDENTITY)])

    async def test_whoever_comes_after_it_stays(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.returns = True
        stub.enter(ROOM, leg())
        assert await send_away(livekit, ROOM, IDENTITY)
        assert stub.removed == []

    async def test_others_are_not_asked(self, stub: Legs, livekit: LiveKitAPI) -> None:
        """livekit-sip's legs and browsers do not answer, and each question takes up to 2 s."""
        connecting = leg()
        connecting.state = ParticipantInfo.State.JOINING
        for other in (
            phone(IDENTITY),
            ParticipantInfo(identity=IDENTITY, state=ParticipantInfo.State.ACTIVE),
            connecting,
        ):
            stub.enter(ROOM, other)
            assert await send_away(livekit, ROOM, IDENTITY)
            assert (stub.asked, stub.removed.pop()) == ([], (ROOM, IDENTITY))

    async def test_nobody_is_there(self, stub: Legs, livekit: LiveKitAPI) -> None:
        assert not await send_away(livekit, "elsewhere", IDENTITY)
        stub.enter(ROOM, leg())
        assert not await send_away(livekit, ROOM, "another")
        assert (stub.asked, stub.removed) == ([], [])

    async def test_one_who_is_leaving_already(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.refusals, stub.vanishes = ["unavailable"], True
        stub.enter(ROOM, phone(IDENTITY))
        assert await send_away(livekit, ROOM, IDENTITY)

    async def test_one_who_left_in_between(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.refusals = ["not_found"]
        stub.enter(ROOM, phone(IDENTITY))
        assert await send_away(livekit, ROOM, IDENTITY)

    async def test_what_livekit_refuses_is_raised(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.refusals = ["unavailable"]
        stub.enter(ROOM, phone(IDENTITY))
        with pytest.raises(ServerError):
            await send_away(livekit, ROOM, IDENTITY)
        stub.failing[ROOM] = "internal"
        with pytest.raises(ServerError):
            await send_away(livekit, ROOM, IDENTITY)


class TestUntilItIsDone:
    async def test_it_is_tried_three_times(
        self, stub: Legs, livekit: LiveKitAPI, caplog: pytest.LogCaptureFixture
    ) -> None:
        stub.refusals = ["unavailable", "internal"]
        stub.enter(ROOM, phone(IDENTITY))
        await send_away_or_log(livekit, ROOM, IDENTITY, pauses_s=(0, 0))
        assert (stub.removed, caplog.messages) == ([(ROOM, IDENTITY)], [])

    async def test_and_then_left_to_the_reconciler(
        self, stub: Legs, livekit: LiveKitAPI, caplog: pytest.LogCaptureFixture
    ) -> None:
        stub.refusals = ["unavailable"] * 3
        stub.enter(ROOM, phone(IDENTITY))
        await send_away_or_log(livekit, ROOM, IDENTITY, pauses_s=(0, 0))
        assert (stub.removed, stub.refusals) == ([], [])
        assert caplog.messages == ["could not hang up"]

    async def test_one_who_is_gone_is_nothing_to_log(
        self, livekit: LiveKitAPI, caplog: pytest.LogCaptureFixture
    ) -> None:
        await send_away_or_log(livekit, ROOM, IDENTITY, pauses_s=(0, 0))
        assert caplog.messages == []


def test_nobody_is_what_they_only_say() -> None:
    """A phone's attributes are of whoever dialled it, a browser's of whoever signed its token."""
    phones, browsers = ParticipantInfo.Kind.SIP, ParticipantInfo.Kind.STANDARD
    for role, kind, other in (
        ("callee", phones, browsers),
        ("caller", phones, browsers),
        ("human", phones, browsers),
        ("visitor", browsers, phones),
    ):
        leg = Leg(cast(Role, role), "call_1")
        assert leg_of(ParticipantInfo(kind=kind, attributes=leg.attributes)) == leg
        assert leg_of(ParticipantInfo(kind=other, attributes=leg.attributes)) is None
    assert leg_of(phone("anybody")) is None


class TestRooms:
    async def test_nobody_is_in_a_room_that_is_not_there(
        self, stub: Legs, livekit: LiveKitAPI
    ) -> None:
        stub.failing[ROOM] = "not_found"
        assert await present(livekit, ROOM) == []
        stub.failing[ROOM] = "unavailable"
        with pytest.raises(ServerError):
            await present(livekit, ROOM)

    async def test_a_room_with_somebody_in_it_is_kept(
        self, stub: Legs, livekit: LiveKitAPI
    ) -> None:
        stub.enter("talking", phone(IDENTITY), agent())
        stub.enter("left", agent())
        for name in ("talking", "left"):
            await tidy(livekit, name)
        assert set(stub.rooms) == {"talking"}

    async def test_a_room_that_is_closed_already(self, stub: Legs, livekit: LiveKitAPI) -> None:
        stub.failing[ROOM] = "not_found"
        await close_room(livekit, ROOM)
        await tidy(livekit, ROOM)
