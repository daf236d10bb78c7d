"""Calls that nobody follows any more: finished when gone, left alone when not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import RoomParticipantIdentity

from core.database import Scope
from core.events import ended
from core.models import Call, CallEvent, now
from gateway.keys import LIVEKIT, OUTBOUND, TIMELINE
from gateway.reconciler import Reconciler
from tests.edge import served
from tests.inprocess import Running, running, settings_in

pytestmark = pytest.mark.store


@dataclass
class Rooms:
    """LiveKit's GetParticipant, by room: 200, or a Twirp error's code."""

    answers: dict[str, str] = field(default_factory=dict)

    async def get_participant(self, request: web.Request) -> web.Response:
        asked = RoomParticipantIdentity.FromString(await request.read())
        code = self.answers.get(asked.room, "not_found")
        if code == "here":
            body = ParticipantInfo(identity=asked.identity).SerializeToString()
            return web.Response(body=body, content_type="application/protobuf")
        return web.json_response({"code": code, "msg": ""}, status=400)


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


@pytest.fixture
async def gateway(tmp_path: Path, rooms: Rooms) -> AsyncIterator[Running]:
    app = web.Application()
    app.router.add_post("/twirp/livekit.RoomService/GetParticipant", rooms.get_participant)
    async with served(app) as edge:
        url = f"http://127.0.0.1:{edge.port}"
        async with running(settings_in(tmp_path, livekit_url=url)) as gateway:
            yield gateway


async def round_of(gateway: Running, second_look_s: float = 0) -> int:
    livekit, outbound = gateway.app[LIVEKIT], gateway.app[OUTBOUND]
    assert livekit is not None and outbound is not None
    timeline = gateway.app[TIMELINE]
    return await Reconciler(
        livekit=livekit,
        store=gateway.store,
        timeline=timeline,
        outbound=outbound,
        second_look_s=second_look_s,
    ).round()


async def old_call(gateway: Running, *events: CallEvent) -> Call:
    queued = CallEvent(type="call.queued", at=now() - timedelta(minutes=5))
    call = await gateway.call(queued=queued)
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


async def test_what_is_there_or_new_is_left_alone(gateway: Running, rooms: Rooms) -> None:
    here, fresh = await old_call(gateway), await gateway.call()
    rooms.answers[here.room_name] = "here"
    assert await round_of(gateway) == 0
    assert await outcome(gateway, here) == await outcome(gateway, fresh) == ("queued", None)


async def test_a_verdict_on_its_way_is_waited_for(gateway: Running) -> None:
    """Missing from its room because it ended just now, as another gateway is about to tell."""
    call = await old_call(gateway)
    busy = CallEvent(type="call.ended", data=ended("busy", "dial_busy", sip_status_code=486))
    looking = asyncio.create_task(round_of(gateway, second_look_s=0.5))
    await gateway.store.append(call.id, [busy], "gateway")
    assert await looking == 0
    assert await outcome(gateway, call) == ("busy", "dial_busy")


async def test_one_that_livekit_will_not_tell_of_does_not_hold_up_the_others(
    gateway: Running, rooms: Rooms
) -> None:
    odd, gone = await old_call(gateway), await old_call(gateway)
    rooms.answers[odd.room_name] = "invalid_argument"
    assert await round_of(gateway) == 1
    assert await outcome(gateway, odd) == ("queued", None)
    assert await outcome(gateway, gone) == ("failed", "dial_failed")


async def test_without_an_answer_nothing_is_concluded(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as gateway:
        call = await old_call(gateway)
        with pytest.raises(aiohttp.ClientError):
            await round_of(gateway)
        assert await outcome(gateway, call) == ("queued", None)
