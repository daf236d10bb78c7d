"""Phones that are left in a room after their call: the gateway removes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import ListParticipantsRequest

from core.events import ended
from core.legs import Leg
from core.models import CallEvent, now
from gateway.store.call_status import Call
from tests.gateway.calls.test_reconciler import round_of
from tests.support.inprocess import Running
from tests.support.livekit_stub import LiveKitStub, agent, phone, running_with

pytestmark = [pytest.mark.store, pytest.mark.attack]


class Asked(LiveKitStub):
    """Records the rooms whose participants were listed."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_into: list[str] = []

    def _list_participants(self, asked: ListParticipantsRequest) -> Message:
        self.looked_into.append(asked.room)
        return super()._list_participants(asked)


@pytest.fixture
def rooms() -> Asked:
    return Asked()


@pytest.fixture
async def gateway(tmp_path: Path, rooms: LiveKitStub) -> AsyncIterator[Running]:
    async with running_with(rooms, tmp_path) as gateway:
        yield gateway


async def over(gateway: Running, since: timedelta = timedelta(minutes=1), **changes: Any) -> Call:
    then = now() - since
    call = await gateway.call(
        queued=CallEvent(type="call.queued", at=then - timedelta(minutes=1)), **changes
    )
    end = CallEvent(type="call.ended", at=then, data=ended("completed", "agent_hangup"))
    await gateway.store.append(call.id, [end], "worker")
    return call


def leg(call: Call, identity: str | None = None) -> ParticipantInfo:
    return phone(identity or call.participant_identity, **Leg("callee", call.id).attributes)


class TestSwept:
    async def test_a_phone_whose_call_is_over(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await over(gateway)
        rooms.enter(call.room_name, leg(call))
        await round_of(gateway)
        assert rooms.removed == [(call.room_name, call.participant_identity)]
        assert (await gateway.store.events(call.id))[-1].type == "call.ended"

    async def test_not_the_others_in_its_room(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await over(gateway)
        live = await gateway.call(room_name=call.room_name, participant_identity="second")
        visitor = ParticipantInfo(identity="visitor", kind=ParticipantInfo.Kind.STANDARD)
        rooms.enter(call.room_name, visitor, leg(live), leg(call))
        await round_of(gateway)
        assert rooms.removed == [(call.room_name, call.participant_identity)]

    async def test_a_human_whose_caller_left(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await over(gateway)
        rooms.enter(call.room_name, phone("human", **Leg("human", call.id).attributes))
        await round_of(gateway)
        assert rooms.removed == [(call.room_name, "human")]

    async def test_one_that_cannot_be_removed_does_not_hold_up_the_others(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        odd, left = await over(gateway), await over(gateway)
        rooms.enter(odd.room_name, leg(odd))
        rooms.enter(left.room_name, leg(left))
        rooms.failing[odd.room_name] = "invalid_argument"
        await round_of(gateway)
        assert rooms.removed == [(left.room_name, left.participant_identity)]


class TestLeftAlone:
    async def test_an_agent_talks_to_it(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await over(gateway)
        rooms.enter(call.room_name, leg(call), agent())
        await round_of(gateway)
        assert rooms.removed == []

    async def test_its_call_ended_just_now(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await over(gateway, timedelta(seconds=5))
        rooms.enter(call.room_name, leg(call))
        await round_of(gateway)
        assert rooms.removed == []

    @pytest.mark.parametrize("attributes", [{}, Leg("callee", "call_of_nobody").attributes])
    async def test_it_is_not_ours(
        self, gateway: Running, rooms: LiveKitStub, attributes: dict[str, str]
    ) -> None:
        call = await over(gateway)
        rooms.enter(call.room_name, phone(call.participant_identity, **attributes))
        await round_of(gateway)
        assert rooms.removed == []

    async def test_it_is_a_browser(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await over(gateway)
        visitor = ParticipantInfo(
            identity="visitor",
            kind=ParticipantInfo.Kind.STANDARD,
            attributes=Leg("visitor", call.id).attributes,
        )
        rooms.enter(call.room_name, visitor)
        await round_of(gateway)
        assert rooms.removed == []

    async def test_its_call_goes_on(self, gateway: Running, rooms: LiveKitStub) -> None:
        before = await over(gateway)
        call = await gateway.call(
            room_name=before.room_name, participant_identity=before.participant_identity
        )
        rooms.enter(call.room_name, leg(call))
        await round_of(gateway)
        assert rooms.removed == []

    async def test_it_only_calls_itself_a_phone(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await over(gateway)
        visitor = ParticipantInfo(
            identity="visitor",
            kind=ParticipantInfo.Kind.STANDARD,
            attributes=Leg("callee", call.id).attributes,
        )
        rooms.enter(call.room_name, visitor)
        await round_of(gateway)
        assert rooms.removed == []


async def test_only_rooms_with_a_call_that_is_over_are_looked_into(
    gateway: Running, rooms: Asked
) -> None:
    live, web = await gateway.call(), await gateway.call(direction="web")
    just_now, long_ago = await over(gateway, timedelta(seconds=5)), await over(gateway, _AGO)
    for call in (live, web, just_now, long_ago):
        rooms.enter(call.room_name, leg(call))
    for foreign in ("foreign", "b\0d", " ", "x" * 300, "'; DROP TABLE calls"):
        rooms.enter(foreign, phone("somebody"))
    await round_of(gateway)
    assert rooms.looked_into == []
    left = await over(gateway)
    rooms.enter(left.room_name, leg(left))
    await round_of(gateway)
    assert rooms.looked_into == [left.room_name]
    assert rooms.removed == [(left.room_name, left.participant_identity)]


_AGO = timedelta(hours=26)
