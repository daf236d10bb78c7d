"""Tests of worker.room.far_end: the far end's events, and the cause of its leaving."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from livekit import rtc

from core.legs import LEAVING
from worker.endings import Cause
from worker.room.far_end import FarEnd
from worker.room.reasons import agent_disconnected, far_end_left

pytestmark = pytest.mark.unit

R = rtc.DisconnectReason


@pytest.mark.parametrize(
    ("reason", "status", "cause"),
    [
        (R.CLIENT_INITIATED, "hangup", "caller_hung_up"),
        (R.CLIENT_INITIATED, "active", "caller_hung_up"),
        (R.PARTICIPANT_REMOVED, "active", "removed"),
        (R.ROOM_DELETED, "active", "removed"),
        (R.DUPLICATE_IDENTITY, "active", "leg_replaced"),
        (R.CONNECTION_TIMEOUT, "active", "leg_lost"),
        (R.MEDIA_FAILURE, "active", "leg_lost"),
        (R.SIGNAL_CLOSE, "active", "leg_lost"),
        (None, "active", "leg_lost"),
    ],
)
def test_a_phone_that_was_answered(reason: Any, status: str, cause: Cause) -> None:
    assert far_end_left(reason, sip=True, status=status, answered=True) == cause


@pytest.mark.parametrize("reason", R.values())
def test_a_phone_that_was_not_is_the_dials_business(reason: Any) -> None:
    assert far_end_left(reason, sip=True, status="ringing", answered=False) == "not_answered"


@pytest.mark.parametrize(
    ("reason", "status", "cause"),
    [
        (R.CLIENT_INITIATED, "hangup", "caller_gave_up"),
        (R.CLIENT_INITIATED, "ringing", "rang_out"),
        (R.UNKNOWN_REASON, "ringing", "rang_out"),
        (R.PARTICIPANT_REMOVED, "ringing", "ring_removed"),
        (R.ROOM_DELETED, "hangup", "ring_removed"),
    ],
)
def test_a_caller_who_was_not_answered(reason: Any, status: str, cause: Cause) -> None:
    left = far_end_left(reason, sip=True, status=status, answered=False, inbound=True)
    assert left == cause


def test_a_browser_that_goes_away_hangs_up() -> None:
    left = far_end_left(R.CONNECTION_TIMEOUT, sip=False, status="", answered=True)
    assert left == "caller_hung_up"


@pytest.mark.parametrize(
    ("reason", "answered", "cause"),
    [
        (R.DUPLICATE_IDENTITY, True, "agent_replaced"),
        (R.PARTICIPANT_REMOVED, True, "agent_removed"),
        (R.ROOM_DELETED, True, "removed"),
        (R.ROOM_DELETED, False, "not_answered"),
        (R.SERVER_SHUTDOWN, True, "media_lost"),
        (R.UNKNOWN_REASON, True, "media_lost"),
    ],
)
def test_why_the_agent_is_out(reason: Any, answered: bool, cause: Cause) -> None:
    assert agent_disconnected(reason, answered=answered) == cause


def test_a_room_deleted_under_a_ringing_caller() -> None:
    cause = agent_disconnected(R.ROOM_DELETED, answered=False, inbound=True)
    assert cause == "ring_removed"


class Party:
    """A participant, as far as its watcher reads it."""

    def __init__(self, identity: str = "phone", *, sip: bool = True, status: str = "") -> None:
        kinds = rtc.ParticipantKind
        self.identity = identity
        self.kind = kinds.PARTICIPANT_KIND_SIP if sip else kinds.PARTICIPANT_KIND_STANDARD
        self.attributes = {"sip.callStatus": status} if status else {}
        self.disconnect_reason: int | None = None


class Watched(rtc.EventEmitter[str]):
    """A room with one watched participant; ``told`` has what the watcher reported."""

    def __init__(self, *, inbound: bool = False, return_within_s: float = 10.0) -> None:
        super().__init__()
        self.remote_participants: dict[str, Party] = {}
        self.told: list[str] = []
        self.connected = True
        self.far_end = FarEnd(
            cast(rtc.Room, self),
            "phone",
            inbound=inbound,
            on_ringing=lambda: self.told.append("ringing"),
            on_answered=lambda: self.told.append("answered"),
            on_digit=lambda digit: self.told.append(f"digit {digit}"),
            on_left=lambda cause, why: self.told.append(f"{cause} {why}"),
            return_within_s=return_within_s,
        )

    @property
    def connection_state(self) -> int:
        states = rtc.ConnectionState
        return states.CONN_CONNECTED if self.connected else states.CONN_RECONNECTING

    def hears_us(self) -> None:
        self.emit("local_track_subscribed", object())

    def joins(self, party: Party) -> Party:
        self.remote_participants[party.identity] = party
        self.emit("participant_connected", party)
        return party

    def status(self, party: Party, status: str) -> None:
        party.attributes["sip.callStatus"] = status
        self.emit("participant_attributes_changed", {"sip.callStatus": status}, party)

    def leaves(self, party: Party, reason: int | None) -> None:
        party.disconnect_reason = reason
        self.remote_participants.pop(party.identity, None)
        self.emit("participant_disconnected", party)


@pytest.fixture
def room() -> Watched:
    return Watched()


@pytest.fixture
def impatient() -> Watched:
    """A room whose watcher gives a lost far end no time to return."""
    return Watched(return_within_s=0)


async def test_a_phone_call_from_dialing_to_hangup(room: Watched) -> None:
    phone = room.joins(Party(status="dialing"))
    assert room.far_end.joined.is_set()
    assert not room.far_end.answered.is_set()
    for status in ("ringing", "ringing", "active", "active", "hangup"):
        room.status(phone, status)
    room.leaves(phone, R.CLIENT_INITIATED)
    assert room.told == ["ringing", "answered", "caller_hung_up hangup"]
    assert not room.far_end.present


async def test_a_phone_that_hung_up_has_left_though_its_leg_is_there(room: Watched) -> None:
    room.status(room.joins(Party(status="active")), "hangup")
    assert room.told == ["answered", "caller_hung_up hangup"]
    assert not room.far_end.present


async def test_a_phone_that_was_asked_to_leave(room: Watched) -> None:
    phone = room.joins(Party(status="active"))
    phone.attributes[LEAVING] = "true"
    room.emit("participant_attributes_changed", {LEAVING: "true"}, phone)
    assert room.told == ["answered", "removed asked to leave"]


@pytest.mark.parametrize(("inbound", "cause"), [(True, "ring_removed"), (False, "not_answered")])
async def test_a_phone_that_was_asked_to_leave_while_it_rang(inbound: bool, cause: Cause) -> None:
    room = Watched(inbound=inbound)
    phone = room.joins(Party(status="ringing"))
    phone.attributes[LEAVING] = "true"
    room.emit("participant_attributes_changed", {LEAVING: "true"}, phone)
    room.leaves(phone, R.CLIENT_INITIATED)
    assert room.told == ["ringing", f"{cause} asked to leave"]


async def test_a_caller_who_hangs_up_at_once_was_answered() -> None:
    """LiveKit reports attributes that change together in one event."""
    room = Watched(inbound=True)
    phone = room.joins(Party(status="ringing"))
    room.hears_us()
    room.status(phone, "hangup")
    room.leaves(phone, R.CLIENT_INITIATED)
    assert room.told == ["ringing", "answered", "caller_hung_up CLIENT_INITIATED"]


async def test_a_caller_who_gives_up_was_not() -> None:
    room = Watched(inbound=True)
    phone = room.joins(Party(status="ringing"))
    room.status(phone, "hangup")
    room.leaves(phone, R.CLIENT_INITIATED)
    assert room.told == ["ringing", "caller_gave_up CLIENT_INITIATED"]


async def test_one_who_was_there_first_is_seen(room: Watched) -> None:
    room.remote_participants["phone"] = Party(status="active")
    room.far_end.look()
    assert room.told == ["answered"]


async def test_a_browser_has_answered_by_joining(room: Watched) -> None:
    room.joins(Party(sip=False))
    assert room.told == ["answered"]


async def test_others_in_the_room_are_not_the_far_end(room: Watched) -> None:
    other = room.joins(Party("other", status="active"))
    room.leaves(other, R.CLIENT_INITIATED)
    room.emit("sip_dtmf_received", rtc.SipDTMF(code=5, digit="5", participant=cast(Any, other)))
    assert room.told == []


async def test_digits(room: Watched) -> None:
    phone = room.joins(Party(status="active"))
    room.emit("sip_dtmf_received", rtc.SipDTMF(code=5, digit="5", participant=cast(Any, phone)))
    assert room.told == ["answered", "digit 5"]


async def test_one_who_comes_back_has_not_left(impatient: Watched) -> None:
    phone = impatient.joins(Party(status="active"))
    impatient.leaves(phone, R.SIGNAL_CLOSE)
    impatient.joins(phone)
    await turns_of_the_loop()
    assert impatient.told == ["answered"]
    impatient.leaves(phone, R.SIGNAL_CLOSE)
    await turns_of_the_loop()
    assert impatient.told == ["answered", "leg_lost SIGNAL_CLOSE"]


async def test_one_who_is_gone_after_a_reconnect(impatient: Watched) -> None:
    impatient.joins(Party(status="active"))
    impatient.far_end.recheck()
    await turns_of_the_loop()
    assert impatient.told == ["answered"], "it is there"
    impatient.remote_participants.clear()
    impatient.far_end.recheck()
    await turns_of_the_loop()
    assert impatient.told == ["answered", "leg_lost gone after a reconnect"]


async def test_nobody_leaves_while_we_are_cut_off(impatient: Watched) -> None:
    phone = impatient.joins(Party(status="active"))
    impatient.connected = False
    impatient.leaves(phone, None)
    await turns_of_the_loop()
    assert impatient.told == ["answered"]
    impatient.connected = True
    impatient.joins(phone)
    impatient.far_end.recheck()
    await turns_of_the_loop()
    assert impatient.told == ["answered"]


async def test_nothing_is_told_after_close(room: Watched) -> None:
    phone = room.joins(Party(status="active"))
    room.far_end.close()
    room.leaves(phone, R.CLIENT_INITIATED)
    assert room.told == ["answered"]


async def turns_of_the_loop() -> None:
    """Let timers of zero seconds run."""
    for _ in range(5):
        await asyncio.sleep(0)
