"""Calls that an agent has handed over to a human: how they end, and which leg is hung up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from core.legs import Leg
from core.models import CallEvent, now
from gateway.calls.handover import Handover
from gateway.keys import TIMELINE, call_services
from gateway.store.call_status import Call
from tests.gateway.api.test_livekit_webhook import answered, deliver, left
from tests.gateway.calls.test_reconciler import old_call, outcome, round_of
from tests.support.inprocess import Running
from tests.support.livekit_stub import LiveKitStub, agent, phone, running_with

pytestmark = pytest.mark.store

HUMAN = "transfer-1"


@pytest.fixture
def rooms() -> LiveKitStub:
    return LiveKitStub()


@pytest.fixture
async def gateway(tmp_path: Path, rooms: LiveKitStub) -> AsyncIterator[Running]:
    async with running_with(rooms, tmp_path) as gateway:
        yield gateway


def human(call: Call) -> Any:
    return phone(HUMAN, "PA_h", **Leg("human", call.id).attributes, **{"sip.callStatus": "active"})


async def note(gateway: Running, call: Call, type: str, mode: str = "warm") -> None:
    data = {"to": "+15551230077", "mode": mode}
    await gateway.store.append(call.id, [CallEvent(type=type, data=data)], "worker")


async def together(
    gateway: Running, rooms: LiveKitStub, *events: str, ago_s: float = 5, **changes: Any
) -> Call:
    """Return an answered call whose caller and human are in its room."""
    call = await answered(gateway, ago_s=ago_s, **changes)
    for event in ("transfer.started", *events):
        await note(gateway, call, event)
    rooms.enter(call.room_name, phone(call.participant_identity), human(call))
    return call


def human_left(call: Call, **changes: Any) -> dict[str, Any]:
    attributes = {"sip.callStatus": "hangup"} | Leg("human", call.id).attributes
    gone = {"sid": "PA_h", "identity": HUMAN, "attributes": attributes}
    return left(call, participant=gone, **changes)


class TestWebhook:
    async def test_the_human_hangs_up(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await together(gateway, rooms, "call.transferred")
        for _ in range(2):
            assert await deliver(gateway, human_left(call)) == 200
        assert await outcome(gateway, call) == ("completed", "call_transfer")
        assert rooms.removed == [(call.room_name, call.participant_identity)]

    async def test_the_caller_hangs_up(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await together(gateway, rooms, "call.transferred")
        assert await deliver(gateway, left(call)) == 200
        assert await outcome(gateway, call) == ("completed", "call_transfer")
        assert rooms.removed == [(call.room_name, HUMAN)]

    async def test_the_time_is_up(self, gateway: Running, rooms: LiveKitStub) -> None:
        call = await together(gateway, rooms, "call.transferred", ago_s=61)
        assert await deliver(gateway, human_left(call)) == 200
        assert await outcome(gateway, call) == ("completed", "max_duration_reached")

    async def test_a_human_who_has_not_taken_the_call(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await together(gateway, rooms)
        assert await deliver(gateway, human_left(call)) == 200
        assert await outcome(gateway, call) == ("in-progress", None)
        assert rooms.removed == []
        assert await deliver(gateway, left(call)) == 200
        assert await outcome(gateway, call) == ("completed", "user_hangup")
        assert rooms.removed == [(call.room_name, HUMAN)]

    async def test_one_of_another_room_or_of_no_call(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await together(gateway, rooms, "call.transferred")
        elsewhere = human_left(call, room={"sid": "RM_2", "name": "another"})
        assert await deliver(gateway, elsewhere) == 200
        stranger = human_left(call)
        stranger["participant"]["attributes"] |= Leg("human", "call_nope").attributes
        assert await deliver(gateway, stranger) == 200
        assert await outcome(gateway, call) == ("in-progress", None)
        assert rooms.removed == []

    async def test_livekit_being_away_loses_no_record(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        livekit = call_services(gateway.app).livekit
        handover = Handover(livekit, gateway.store, gateway.app[TIMELINE], pauses_s=(0, 0))
        call = await together(gateway, rooms, "call.transferred")
        rooms.failing[call.room_name] = "unavailable"
        await handover.human_left(call.id, call.room_name, now())
        assert await deliver(gateway, left(call)) == 200
        assert await outcome(gateway, call) == ("completed", "call_transfer")

    async def test_a_phone_that_is_being_referred_is_its_referrers_to_explain(
        self, gateway: Running
    ) -> None:
        call = await answered(gateway)
        await note(gateway, call, "transfer.started", "cold")
        assert await deliver(gateway, left(call)) == 200
        assert await outcome(gateway, call) == ("in-progress", None)
        await note(gateway, call, "transfer.failed")
        assert await deliver(gateway, left(call)) == 200
        assert await outcome(gateway, call) == ("completed", "user_hangup")


class TestReconciler:
    async def old(self, gateway: Running, *events: str, mode: str = "warm") -> Call:
        call = await old_call(gateway, CallEvent(type="call.answered", at=now() - MINUTE))
        for event in ("transfer.started", *events):
            await note(gateway, call, event, mode)
        return call

    async def test_who_talks_without_an_agent_on_purpose_is_left_alone(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        call = await self.old(gateway, "call.transferred")
        rooms.enter(call.room_name, phone(call.participant_identity), human(call))
        assert await round_of(gateway, alone_s=0) == 0
        assert rooms.removed == []

    async def test_who_was_left_behind_by_the_other(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        caller = await self.old(gateway, "call.transferred")
        rooms.enter(caller.room_name, phone(caller.participant_identity))
        called = await self.old(gateway, "call.transferred")
        rooms.enter(called.room_name, human(called))
        assert await round_of(gateway, alone_s=0) == 2
        for call in (caller, called):
            assert await outcome(gateway, call) == ("completed", "call_transfer")
        assert set(rooms.removed) == {
            (caller.room_name, caller.participant_identity),
            (called.room_name, HUMAN),
        }

    async def test_a_human_who_has_not_taken_the_call_is_no_company(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        helped = await self.old(gateway)
        rooms.enter(helped.room_name, phone(helped.participant_identity), human(helped), agent())
        assert await round_of(gateway, alone_s=0) == 0
        left_alone = await self.old(gateway)
        present = phone(left_alone.participant_identity), human(left_alone)
        rooms.enter(left_alone.room_name, *present)
        assert await round_of(gateway, alone_s=0) == 1
        assert await outcome(gateway, left_alone) == ("failed", "agent_error")
        assert {identity for _, identity in rooms.removed} == {
            HUMAN,
            left_alone.participant_identity,
        }

    async def test_a_phone_that_went_where_it_was_referred(self, gateway: Running) -> None:
        call = await self.old(gateway, mode="cold")
        assert await round_of(gateway) == 1
        assert await outcome(gateway, call) == ("completed", "call_transfer")


MINUTE = timedelta(minutes=1)
