"""A leg in a room gives back what it took from the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from livekit import rtc

from core.legs import LEAVE_METHOD
from sip import room_leg
from sip.endings import PHONE_HUNG_UP
from sip.participant import LiveKit, Participant
from sip.room_leg import RoomLeg

pytestmark = pytest.mark.unit


class Local:
    """The local participant, as far as a leg uses it."""

    def __init__(self) -> None:
        self.attributes: dict[str, str] = {}
        self.methods: set[str] = set()

    async def publish_track(self, *_: object) -> None:
        return None

    async def set_attributes(self, _: dict[str, str]) -> None:
        return None

    def register_rpc_method(self, name: str, _: Callable[..., Any]) -> None:
        self.methods.add(name)

    def unregister_rpc_method(self, name: str) -> None:
        self.methods.remove(name)


class Publication:
    def __init__(self, kind: rtc.TrackKind.ValueType) -> None:
        self.kind = kind
        self.asked: list[bool] = []

    def set_subscribed(self, subscribed: bool) -> None:
        self.asked.append(subscribed)


class Remote:
    def __init__(self, *publications: Publication) -> None:
        self.track_publications = dict(enumerate(publications))


class Room:
    def __init__(self) -> None:
        self.local_participant = Local()
        self.remote_participants: dict[str, Remote] = {}
        self.connected = True
        self.handlers: dict[str, Callable[..., None]] = {}

    def on(self, event: str, handler: Callable[..., None]) -> None:
        self.handlers[event] = handler

    def isconnected(self) -> bool:
        return self.connected

    async def disconnect(self, *, reason: int) -> None:
        self.connected = False


async def join(monkeypatch: pytest.MonkeyPatch) -> tuple[RoomLeg, Room]:
    room = Room()

    async def connect(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(rtc, "Room", lambda: room)
    monkeypatch.setattr(room_leg, "connect", connect)
    livekit = LiveKit("ws://127.0.0.1:1", "key", "a-secret-of-more-than-32-bytes-for-tests")
    leg = RoomLeg("SCL_1", Participant("room", "phone", "Phone", "", {}), livekit)
    await leg.join(asyncio.get_running_loop().time() + 5)
    return leg, room


@pytest.mark.parametrize("removed", [False, True], ids=["left by the leg", "ended by the room"])
async def test_no_handler_is_left_in_the_room(
    removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK frees no room that has one, in any way of leaving."""
    leg, room = await join(monkeypatch)
    assert room.local_participant.methods == {"lk.sip.EndCall", LEAVE_METHOD}
    room.connected = not removed
    await leg.leave(PHONE_HUNG_UP)
    assert not room.connected and room.local_participant.methods == set()


async def test_a_track_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it rings and at the answer; asked again, the answer's status would be 40 ms late."""
    leg, room = await join(monkeypatch)
    voice, screen = Publication(rtc.TrackKind.KIND_AUDIO), Publication(rtc.TrackKind.KIND_VIDEO)
    room.remote_participants["agent"] = Remote(voice, screen)
    leg.subscribe()
    leg.subscribe()
    await leg.leave(PHONE_HUNG_UP)
    assert (voice.asked, screen.asked) == ([True], [])
