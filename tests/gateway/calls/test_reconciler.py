"""Where records and rooms disagree, the reconciler acts if it is sure, and else waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from core.events import ended
from core.legs import Leg
from core.models import CallEvent, new_id, now
from gateway.calls.inbound import call_id_of
from gateway.calls.reconciler import Reconciler
from gateway.keys import TIMELINE, call_services
from gateway.store.call_status import Call
from gateway.store.database import Scope
from tests.support.inprocess import Running, running, settings_in
from tests.support.livekit_stub import LiveKitStub, agent, phone, running_with

pytestmark = pytest.mark.store


@pytest.fixture
def rooms() -> LiveKitStub:
    return LiveKitStub()


@pytest.fixture
async def gateway(tmp_path: Path, rooms: LiveKitStub) -> AsyncIterator[Running]:
    async with running_with(rooms, tmp_path) as gateway:
        yield gateway


async def round_of(gateway: Running, second_look_s: float = 0, alone_s: float = 60) -> int:
    services = call_services(gateway.app)
    return await Reconciler(
        livekit=services.livekit,
        store=gateway.store,
        timeline=gateway.app[TIMELINE],
        rooms=services.rooms,
        outbound=services.outbound,
        inbound=services.inbound,
        recovery=services.recovery,
        second_look_s=second_look_s,
        alone_s=alone_s,
    ).round()


class Rooms:
    """Rooms whose every look fails."""

    def __init__(self, fault: Exception) -> None:
        self.asked = asyncio.Queue[None]()
        self._fault = fault

    async def look(self) -> None:
        self.asked.put_nowait(None)
        raise self._fault


@asynccontextmanager
async def reconciling(gateway: Running, rooms: Rooms) -> AsyncIterator[None]:
    services = call_services(gateway.app)
    parts: Any = {"rooms": rooms}
    reconciler = Reconciler(
        livekit=services.livekit,
        store=gateway.store,
        timeline=gateway.app[TIMELINE],
        outbound=services.outbound,
        inbound=services.inbound,
        recovery=services.recovery,
        **parts,
    )
    running = asyncio.create_task(reconciler.run(period_s=0))
    try:
        async with asyncio.timeout(10):
            yield
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.mark.parametrize("fault", [TimeoutError(), KeyError("bug")])
async def test_a_round_that_fails_is_followed_by_another(
    gateway: Running, fault: Exception
) -> None:
    rooms = Rooms(fault)
    async with reconciling(gateway, rooms):
        for _ in range(3):
            await rooms.asked.get()


async def old_call(gateway: Running, *events: CallEvent, **changes: object) -> Call:
    queued = CallEvent(type="call.queued", at=now() - timedelta(minutes=5))
    call = await gateway.call(queued=queued, **changes)
    await gateway.store.append(call.id, events, "gateway")
    return call


async def outcome(gateway: Running, call: Call) -> tuple[str, str | None]:
    kept = await gateway.store.call(Scope(None), call.id)
    assert kept is not None
    return kept.status, kept.disconnection_reason


async def test_what_is_gone_is_finished_once(gateway: Running) -> None:
    dialing = CallEvent(type="call.dialing", data={"participantId": "PA", "sipCallId": "SCL"})
    answered = await old_call(gateway, dialing, CallEvent(type="call.answered"))
    rang, never = await old_call(gateway, dialing), await old_call(gateway)
    assert await round_of(gateway) == 3
    assert await outcome(gateway, answered) == ("completed", "user_hangup")
    assert await outcome(gateway, rang) == ("failed", "dial_failed")
    assert await outcome(gateway, never) == ("failed", "dial_failed")
    assert await round_of(gateway) == 0
    assert [e.source for e in await gateway.store.events(never.id)] == ["gateway", "reconciler"]


async def test_what_is_there_or_new_is_left_alone(gateway: Running, rooms: LiveKitStub) -> None:
    here, fresh = await old_call(gateway), await gateway.call()
    rooms.enter(here.room_name, phone(here.participant_identity), agent())
    assert await round_of(gateway) == 0
    assert await outcome(gateway, here) == await outcome(gateway, fresh) == ("queued", None)


async def test_a_verdict_on_its_way_is_waited_for(gateway: Running) -> None:
    """A phone may be missing because its call just ended, as another gateway is about to record."""
    call = await old_call(gateway)
    busy = CallEvent(type="call.ended", data=ended("busy", "dial_busy", sip_status_code=486))
    looking = asyncio.create_task(round_of(gateway, second_look_s=0.5))
    await gateway.store.append(call.id, [busy], "gateway")
    assert await looking == 0
    assert await outcome(gateway, call) == ("busy", "dial_busy")


async def test_one_that_livekit_will_not_tell_of_does_not_hold_up_the_others(
    gateway: Running, rooms: LiveKitStub
) -> None:
    odd, gone = await old_call(gateway), await old_call(gateway)
    rooms.failing[odd.room_name] = "invalid_argument"
    assert await round_of(gateway) == 1
    assert await outcome(gateway, odd) == ("queued", None)
    assert await outcome(gateway, gone) == ("failed", "dial_failed")


async def test_without_an_answer_nothing_is_concluded(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        call = await old_call(gateway)
        with pytest.raises(aiohttp.ClientError):
            await round_of(gateway)
        assert await outcome(gateway, call) == ("queued", None)


class TestAlone:
    """A phone in a room where nobody will ever talk to it."""

    async def test_it_is_hung_up_on_after_a_while(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        answered = CallEvent(type="call.answered")
        silent, rings = await old_call(gateway, answered), await old_call(gateway)
        for call in (silent, rings):
            rooms.enter(call.room_name, phone(call.participant_identity))
        assert await round_of(gateway) == 0, "for how long they have been alone is not known"
        assert await round_of(gateway, alone_s=0) == 2
        assert await outcome(gateway, silent) == ("failed", "agent_error")
        assert await outcome(gateway, rings) == ("failed", "agent_unavailable")
        assert {room for room, _ in rooms.removed} == {silent.room_name, rings.room_name}

    async def test_who_has_company_or_wants_none_is_left_alone(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        helped, bridged = await old_call(gateway), await old_call(gateway)
        agentless = await old_call(gateway, agent=None)
        rooms.enter(helped.room_name, phone(helped.participant_identity), agent())
        rooms.enter(bridged.room_name, phone(bridged.participant_identity), phone("other"))
        rooms.enter(agentless.room_name, phone(agentless.participant_identity))
        assert await round_of(gateway, alone_s=0) == 0
        assert rooms.removed == []

    async def test_one_whose_call_is_over_already(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        room = "in_+1999_left"
        over = CallEvent(
            type="call.ended",
            at=now() - timedelta(minutes=1),
            data=ended("failed", "agent_unavailable"),
        )
        call = await old_call(
            gateway, over, id=call_id_of(room), room_name=room, direction="inbound"
        )
        rooms.metadata[room] = '{"number_id": "num_1"}'
        rooms.enter(room, phone(call.participant_identity))
        assert await round_of(gateway) == 0
        assert rooms.removed == [(room, call.participant_identity)]


class TestInbound:
    @pytest.mark.parametrize(
        ("told", "wanted"),
        [
            (None, ("failed", "agent_unavailable")),
            ({"callStatus": "hangup"}, ("canceled", "user_hangup")),
            ({"callStatus": "ringing"}, ("failed", "agent_unavailable")),
            ({"disconnectReason": "PARTICIPANT_REMOVED"}, ("canceled", "canceled")),
        ],
    )
    async def test_a_ringing_caller_who_is_gone(
        self, gateway: Running, told: dict[str, str] | None, wanted: tuple[str, str]
    ) -> None:
        left = [] if told is None else [CallEvent(type="livekit.participant_left", data=told)]
        call = await old_call(gateway, CallEvent(type="call.ringing"), *left, direction="inbound")
        assert await round_of(gateway) == 1
        assert await outcome(gateway, call) == wanted

    async def test_one_whom_nobody_told_of_gets_a_record(
        self, gateway: Running, rooms: LiveKitStub
    ) -> None:
        room = f"in_+15105550123_{new_id('x')}"
        rooms.metadata[room] = '{"number_id": "num_1", "auth_id": "acme"}'
        caller = phone("sip_+15105550123", **Leg("caller", "num_1").attributes)
        caller.metadata = rooms.metadata[room]
        caller.joined_at = int(now().timestamp()) - 3
        rooms.enter(room, caller, agent())
        assert await round_of(gateway) == 0
        call = await gateway.store.call(Scope("acme"), call_id_of(room))
        assert call is not None and call.direction == "inbound"
        assert call.created_at.timestamp() == caller.joined_at


async def test_an_agent_that_nobody_missed_is_replaced(
    gateway: Running, rooms: LiveKitStub
) -> None:
    """It has joined and never left, but is not in the room: not a reason to hang up yet."""
    data = {"worker": "wrk_1", "epoch": 0}
    missed, sent_away = [
        await old_call(
            gateway, CallEvent(type="agent.joined", data=data), CallEvent(type="call.answered")
        )
        for _ in range(2)
    ]
    left = CallEvent(type="agent.left", data={"cause": "agent_removed"})
    await gateway.store.append(sent_away.id, [left], "worker")
    for call in (missed, sent_away):
        rooms.enter(call.room_name, phone(call.participant_identity))
    await round_of(gateway, alone_s=0)
    assert await outcome(gateway, missed) == ("in-progress", None)
    (lost,) = await gateway.store.events(missed.id, types=["agent.lost"])
    assert lost.data["why"] == "vanished"
    assert await outcome(gateway, sent_away) == ("failed", "agent_error")
