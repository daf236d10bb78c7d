"""Web calls with a real LiveKit and a real agent: what the token allows, and how calls end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from livekit import rtc
from livekit.api import LiveKitAPI
from livekit.protocol.models import TrackSource
from livekit.protocol.room import ListRoomsRequest, RoomParticipantIdentity

from tests.conftest import ACME, GREETING, Gateway
from tests.support.calls import told

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


async def open_call(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.post("/v1/calls/web", json={"agentId": "greeter"})
    assert answer.status == 200, answer.body
    return dict(answer.body)


@asynccontextmanager
async def visiting(call: dict[str, Any]) -> AsyncIterator[rtc.Room]:
    room = rtc.Room()
    await room.connect(call["livekitUrl"], call["accessToken"])
    try:
        yield room
    finally:
        await room.disconnect()


def greeted(room: rtc.Room) -> asyncio.Future[str]:
    """Return a future of what the agent says first, from LiveKit's text streams."""
    said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    reading: list[asyncio.Task[None]] = []

    async def read(reader: rtc.TextStreamReader) -> None:
        text = await reader.read_all()
        if not said.done():
            said.set_result(text)

    def heard(reader: rtc.TextStreamReader, _identity: str) -> None:
        reading.append(asyncio.create_task(read(reader)))

    room.register_text_stream_handler("lk.transcription", heard)
    return said


async def outcome(gateway: Gateway, call: dict[str, Any]) -> tuple[str, str]:
    path = f"/v1/calls/{call['callId']}?wait=true&timeout=20"
    record = (await gateway.get(path)).body
    assert (record["direction"], record["type"]) == ("web", "web")
    return record["status"], record["disconnectionReason"]


async def rooms(livekit: LiveKitAPI, call: dict[str, Any]) -> list[Any]:
    listed = await livekit.room.list_rooms(ListRoomsRequest(names=[call["callId"]]))
    return list(listed.rooms)


async def test_the_agent_greets_and_a_visitor_who_leaves_hangs_up(
    gateway: Gateway, livekit: LiveKitAPI
) -> None:
    call = await open_call(gateway)
    (room,) = await rooms(livekit, call)
    assert json.loads(room.metadata) == {"auth_id": "acme"}
    visitor = rtc.Room()
    said = greeted(visitor)
    await visitor.connect(call["livekitUrl"], call["accessToken"])
    assert (await asyncio.wait_for(said, 20)).strip() == GREETING
    await visitor.disconnect()
    assert await outcome(gateway, call) == ("completed", "user_hangup")


async def test_a_visitor_may_speak_and_listen_alone(gateway: Gateway, livekit: LiveKitAPI) -> None:
    call = await open_call(gateway)
    async with visiting(call) as room:
        whom = RoomParticipantIdentity(room=room.name, identity="visitor")
        may = (await livekit.room.get_participant(whom)).permission
    assert (may.can_publish, may.can_subscribe) == (True, True)
    assert list(may.can_publish_sources) == [TrackSource.MICROPHONE]
    assert (may.can_publish_data, may.can_update_metadata) == (False, False)
    assert (may.hidden, may.recorder, may.agent) == (False, False, False)


async def test_the_api_hangs_up_on_a_visitor(gateway: Gateway) -> None:
    call = await open_call(gateway)
    async with visiting(call) as room:
        gone: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        room.on("disconnected", gone.set_result)
        await told(gateway, call["callId"], "call.answered")
        assert (await gateway.post(f"/v1/calls/{call['callId']}/end")).status == 200
        await asyncio.wait_for(gone, 10)
    assert await outcome(gateway, call) == ("completed", "agent_hangup")


async def test_a_visitor_who_comes_too_late_makes_no_room_that_is_nobodys(
    gateway: Gateway, livekit: LiveKitAPI
) -> None:
    call = await open_call(gateway)
    assert (await gateway.post(f"/v1/calls/{call['callId']}/end", headers=ACME)).status == 200
    assert await outcome(gateway, call) == ("canceled", "canceled")
    async with asyncio.timeout(10):
        while await rooms(livekit, call):  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.05)
    # When the gateway learns of the end, it closes the call's room, even the visitor's new one.
    for _ in range(5):
        async with visiting(call):
            if await claimed(gateway, livekit, call):
                return
    raise AssertionError("the room was closed each time")


async def claimed(gateway: Gateway, livekit: LiveKitAPI, call: dict[str, Any]) -> bool:
    """Return True once the visitor's room is labelled as the tenant's; False: it was closed."""
    before = await rooms(livekit, call)
    answer = await gateway.get(f"/livekit/rooms/{call['callId']}")
    after = await rooms(livekit, call)
    # If the room is closed, the visitor's SDK reconnects, which creates it again.
    if not before or not after or before[0].sid != after[0].sid:
        return False
    if answer.status == 404:
        return False  # it is being closed, and LiveKit lists it for a moment more
    owned = {"auth_id": "acme"}
    assert "acme" not in before[0].metadata or json.loads(before[0].metadata) == owned
    assert answer.status == 200
    assert json.loads(after[0].metadata) == owned
    return True
