"""Tests of gateway.calls.livekit: hang-ups are retried, legs recognised and rooms closed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import pytest
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.models import ParticipantInfo

from core.legs import Leg, Role
from gateway.calls.livekit import close_room, leg_of, present, send_away_or_log, tidy
from tests.support.legs import Legs
from tests.support.livekit_stub import agent, phone, reached

pytestmark = pytest.mark.unit

ROOM, IDENTITY = "room", "caller"


@pytest.fixture
def stub() -> Legs:
    return Legs()


@pytest.fixture
async def livekit(stub: Legs) -> AsyncIterator[LiveKitAPI]:
    async with reached(stub) as api:
        yield api


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
    """A phone cannot claim a browser's role, nor a browser a phone's: the dialler sets a phone's
    attributes, and the signer of the token sets a browser's."""
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
