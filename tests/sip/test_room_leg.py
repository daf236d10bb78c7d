"""sip.room_leg: joining, last words, and release of what the leg took from the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from livekit import rtc

from core.legs import LEAVE_METHOD
from core.sound.reports import SoundReport
from sip import room_leg
from sip.audio import sound_reports
from sip.endings import PHONE_HUNG_UP, SHUTDOWN
from sip.participant import LiveKit, Participant
from sip.room_leg import OverAlready, RoomLeg

pytestmark = pytest.mark.unit


class Local:
    """The local participant, as far as a leg uses it."""

    def __init__(self) -> None:
        self.attributes: dict[str, str] = {}
        self.methods: dict[str, Callable[..., Any]] = {}
        self.reported: asyncio.Queue[tuple[list[str], bytes]] = asyncio.Queue()
        self.publishes = asyncio.Event()
        self.publishes.set()

    async def publish_track(self, *_: object) -> None:
        await self.publishes.wait()

    async def set_attributes(self, attributes: dict[str, str]) -> None:
        self.attributes |= attributes

    def register_rpc_method(self, name: str, handler: Callable[..., Any]) -> None:
        self.methods[name] = handler

    def unregister_rpc_method(self, name: str) -> None:
        del self.methods[name]

    async def publish_data(
        self, payload: bytes, *, topic: str, destination_identities: list[str]
    ) -> None:
        assert topic == "switchroom.sound"
        self.reported.put_nowait((destination_identities, payload))


class Publication:
    def __init__(self, kind: rtc.TrackKind.ValueType) -> None:
        self.kind = kind
        self.asked: list[bool] = []

    def set_subscribed(self, subscribed: bool) -> None:
        self.asked.append(subscribed)


class Remote:
    kind = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT

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


def outside(
    monkeypatch: pytest.MonkeyPatch, *, tells_within_s: float = 2.0
) -> tuple[RoomLeg, Room]:
    room = Room()

    async def connect(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(rtc, "Room", lambda: room)
    monkeypatch.setattr(room_leg, "connect", connect)
    livekit = LiveKit("ws://127.0.0.1:1", "key", "a-secret-of-more-than-32-bytes-for-tests")
    phone = Participant("room", "phone", "Phone", "", {})
    return RoomLeg("SCL_1", phone, livekit, tells_within_s=tells_within_s), room


async def join(monkeypatch: pytest.MonkeyPatch) -> tuple[RoomLeg, Room]:
    leg, room = outside(monkeypatch)
    await leg.join(asyncio.get_running_loop().time() + 5)
    return leg, room


@pytest.mark.parametrize("removed", [False, True], ids=["left by the leg", "ended by the room"])
async def test_no_handler_is_left_in_the_room(
    removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK never frees a room that still has a handler."""
    leg, room = await join(monkeypatch)
    assert room.local_participant.methods.keys() == {"lk.sip.EndCall", LEAVE_METHOD}
    room.connected = not removed
    await leg.leave(PHONE_HUNG_UP)
    assert not room.connected and not room.local_participant.methods


class Handset:
    """A phone's audio that a test does not hear."""

    def read(self, max_bytes: int) -> bytes:
        return b""

    def write(self, pcm: bytes) -> None: ...

    def backlog(self) -> int:
        return 0

    def to_wire_s(self) -> float:
        return 0.02


async def test_sound_is_reported_to_the_agents_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_reports, "_EVERY_S", 0.01)
    leg, room = await join(monkeypatch)
    leg.carry(Handset(), lambda: 0.0)
    ask = room.local_participant.methods["switchroom.reportSound"]
    visitor = room.remote_participants["visitor"] = Remote()
    visitor.kind = rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD
    for name in ("visitor", "nobody"):
        with pytest.raises(rtc.RpcError):
            await ask(Asked(name))
    room.remote_participants["agent"] = Remote()
    assert await ask(Asked("agent")) == "{}"
    whom, payload = await asyncio.wait_for(room.local_participant.reported.get(), 5)
    assert whom == ["agent"]
    assert len(SoundReport.decode(payload).said) >= 0
    await leg.leave(PHONE_HUNG_UP)
    assert not room.local_participant.methods


@dataclass
class Asked:
    """rtc.RpcInvocationData, as far as the leg reads it."""

    caller_identity: str


async def test_a_track_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for while ringing; a second time would make the answer's status 40 ms late."""
    leg, room = await join(monkeypatch)
    voice, screen = Publication(rtc.TrackKind.KIND_AUDIO), Publication(rtc.TrackKind.KIND_VIDEO)
    room.remote_participants["agent"] = Remote(voice, screen)
    leg.subscribe()
    leg.subscribe()
    await leg.leave(PHONE_HUNG_UP)
    assert (voice.asked, screen.asked) == ([True], [])


async def test_a_last_word_waits_for_the_room_and_for_no_publication(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A caller who hung up during the join must not look like one whom nobody answered."""
    leg, room = outside(monkeypatch, tells_within_s=0)
    room.local_participant.publishes.clear()
    joining = asyncio.create_task(leg.join(asyncio.get_running_loop().time() + 5))
    await asyncio.sleep(0)
    leg.end(PHONE_HUNG_UP)
    with pytest.raises(OverAlready) as over:
        await joining
    assert over.value.ending is PHONE_HUNG_UP
    await leg.leave(PHONE_HUNG_UP)
    assert room.local_participant.attributes == {"sip.callStatus": "hangup"}


async def test_an_ending_without_a_last_word_ends_the_join_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leg, room = outside(monkeypatch)
    room.local_participant.publishes.clear()
    joining = asyncio.create_task(leg.join(asyncio.get_running_loop().time() + 5))
    await asyncio.sleep(0)
    leg.end(SHUTDOWN)
    with pytest.raises(OverAlready, match="shutdown"):
        await asyncio.wait_for(joining, 1)
    await leg.leave(SHUTDOWN)
