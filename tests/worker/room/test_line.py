"""Tests of worker.room.line: LiveKit's events and the requests to it, without a LiveKit."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from livekit import rtc
from pydantic import SecretStr

from core.jobs import CallBrief
from core.models import Agent, AgentConfig
from core.recordings.command import COMMAND_TOPIC, Command
from core.tokens import TokenIssuer
from core.transfers import TransferResult, human_identity
from dev.stack.environment import GivenSettings
from worker.endings import Cause
from worker.line import KEYS, Line, LineError
from worker.room import hang_up
from worker.room import line as room_line
from worker.room.line import RoomLine

pytestmark = pytest.mark.unit

R = rtc.DisconnectReason
PHONE = "phone"
SECRET = "a-livekit-secret-of-32-bytes-at-least"
BRIEF = CallBrief(
    call_id="call_1",
    direction="outbound",
    participant_identity=PHONE,
    from_number=None,
    to_number=None,
    metadata={},
    max_duration_ms=1000,
    agent=Agent(id="a", version=1, config=AgentConfig(name="Ann")),
)


class Room(rtc.EventEmitter[str]):
    """A room as the worker sees it."""

    name = "room"
    connection_state = rtc.ConnectionState.CONN_CONNECTED

    def __init__(self) -> None:
        super().__init__()
        self.remote_participants: dict[str, SimpleNamespace] = {}

    def joins(self, identity: str = PHONE, status: str = "ringing", kind: str = "SIP") -> Any:
        party = self.remote_participants[identity] = SimpleNamespace(
            identity=identity,
            track_publications={},
            attributes={"sip.callStatus": status},
            kind=rtc.ParticipantKind.Value(f"PARTICIPANT_KIND_{kind}"),
        )
        self.emit("participant_connected", party)
        return party

    def status(self, party: Any, status: str) -> None:
        party.attributes["sip.callStatus"] = status
        self.emit("participant_attributes_changed", {"sip.callStatus": status}, party)


class Session:
    """Keeps what it is started with, and does nothing."""

    output = SimpleNamespace(audio=None)

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    async def start(self, agent: object, **given: Any) -> None:
        self.given = given


class Held:
    """A room line and its listener; ``told`` has what the line reported."""

    def __init__(self, *, inbound: bool = False, reconnect_within_s: float = 20.0) -> None:
        self.room = Room()
        self.told: list[str] = []
        self.over = asyncio.Event()
        self.session = Session()
        ctx = SimpleNamespace(room=self.room, connect=self._connect, api=None)
        self.line = RoomLine(
            cast(Any, ctx),
            GivenSettings(livekit_api_secret=SecretStr(SECRET)),
            inbound=inbound,
            reconnect_within_s=reconnect_within_s,
        )
        self.as_line: Line = self.line

    async def _connect(self) -> None: ...

    async def start(self) -> None:
        await self.line.connect(self)
        self.line.meet(BRIEF)
        await self.line.start(cast(Any, self.session), cast(Any, None))

    def ringing(self) -> None:
        self.told.append("ringing")

    def answered(self) -> None:
        self.told.append("answered")

    def key(self, key: str) -> None:
        self.told.append(f"key {key}")

    def typed(self, text: str) -> None:
        self.told.append(f"typed {text}")

    def interrupted(self) -> None:
        self.told.append("interrupted")

    def commanded(self, command: Command) -> None:
        self.told.append(f"commanded {command.action} {command.seconds}")

    def left(self, cause: Cause, detail: str) -> None:
        self.told.append(f"left {cause}")

    def lost(self, cause: Cause, detail: str) -> None:
        self.told.append(f"lost {cause} {detail}".strip())
        self.over.set()


@pytest.fixture
def held() -> Held:
    return Held()


def packet(token: str, **changes: Any) -> rtc.DataPacket:
    values: dict[str, Any] = {
        "data": token.encode(),
        "kind": rtc.DataPacketKind.KIND_RELIABLE,
        "participant": None,
        "topic": COMMAND_TOPIC,
    }
    return rtc.DataPacket(**{**values, **changes})


async def test_the_gateway_commands_and_nobody_in_the_room(held: Held) -> None:
    tokens, mask = TokenIssuer(SECRET), Command(id="cmd_1", action="mask", seconds=9)
    token = tokens.for_command(BRIEF.call_id, mask.wire())
    await held.line.connect(held)
    held.room.emit("data_received", packet(token))
    held.line.meet(BRIEF)
    held.room.emit("data_received", packet(token, participant=held.room.joins()))
    held.room.emit("data_received", packet(token, topic="chat"))
    held.room.emit("data_received", packet(tokens.for_command("call_2", mask.wire())))
    held.room.emit("data_received", packet(mask.model_dump_json()))
    assert held.told == []
    held.room.emit("data_received", packet(token))
    held.room.emit("data_received", packet(token))
    assert held.told == ["commanded mask 9"]


async def test_the_far_end_is_told_of_from_the_start_on(held: Held) -> None:
    phone = held.room.joins()
    await held.line.connect(held)
    held.line.meet(BRIEF)
    assert held.told == []
    await held.line.start(cast(Any, held.session), cast(Any, None))
    assert held.told == ["ringing"]
    await held.line.joined()
    held.room.status(phone, "active")
    await held.line.answered()
    held.room.emit("sip_dtmf_received", rtc.SipDTMF(code=5, digit="5", participant=phone))
    held.room.status(phone, "hangup")
    assert held.told == ["ringing", "answered", "key 5", "left caller_hung_up"]
    assert not held.line.present
    await held.line._delay.aclose()  # type: ignore[union-attr]


async def test_nobody_in_the_room_drives_the_agent(held: Held) -> None:
    await held.start()
    assert held.session.given["room"] is held.room
    assert held.session.given["session_host"] is held.session.given["record"] is False
    options = held.session.given["room_options"]
    assert (options.participant_identity, options.text_input) == (PHONE, False)


@pytest.mark.parametrize(
    ("status", "reason", "told"),
    [
        ("active", R.PARTICIPANT_REMOVED, "lost agent_removed PARTICIPANT_REMOVED"),
        ("active", R.ROOM_DELETED, "lost removed ROOM_DELETED"),
        ("ringing", R.ROOM_DELETED, "lost not_answered ROOM_DELETED"),
        (None, R.ROOM_DELETED, "lost not_answered ROOM_DELETED"),
        ("active", R.SERVER_SHUTDOWN, "lost media_lost SERVER_SHUTDOWN"),
    ],
)
async def test_why_the_agent_is_out(held: Held, status: str | None, reason: Any, told: str) -> None:
    if status is None:
        await held.line.connect(held)
    else:
        held.room.joins(status=status)
        await held.start()
    held.room.emit("disconnected", reason)
    assert held.told[-1] == told
    if held.line._delay is not None:
        await held.line._delay.aclose()


async def test_a_callers_room_that_is_deleted_before_it_is_known_whose_it_is() -> None:
    held = Held(inbound=True)
    await held.line.connect(held)
    held.room.emit("disconnected", R.ROOM_DELETED)
    assert held.told == ["lost ring_removed ROOM_DELETED"]


async def test_a_connection_that_does_not_come_back() -> None:
    held = Held(reconnect_within_s=0)
    await held.line.connect(held)
    held.room.emit("reconnecting")
    async with asyncio.timeout(5):
        await held.over.wait()
    assert held.told == ["lost media_lost"]


async def test_a_connection_that_comes_back() -> None:
    held = Held(reconnect_within_s=0)
    await held.line.connect(held)
    held.room.emit("reconnecting")
    held.room.emit("reconnecting")
    held.room.emit("reconnected")
    for _ in range(5):
        await asyncio.sleep(0)
    assert held.told == []


async def test_whom_there_is_to_hang_up_on(held: Held) -> None:
    await held.line.connect(held)
    assert not held.line.present
    held.room.joins("visitor", kind="STANDARD")
    assert not held.line.present
    held.room.joins("somebody's phone")
    assert held.line.present, "the one phone in the room"
    held.room.joins("another phone")
    assert not held.line.present, "which of them is not known"
    held.line.meet(BRIEF)
    assert held.line.present, "the brief says who; nobody has looked yet"
    await held.line.start(cast(Any, held.session), cast(Any, None))
    assert not held.line.present, "not there"


async def test_keys_have_the_codes_of_rfc_4733(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[tuple[str, int, str]] = []

    async def publish(room: Any, identities: list[str], *, code: int, digit: str) -> None:
        assert room is held.room
        (identity,) = identities
        played.append((identity, code, digit))

    monkeypatch.setattr(room_line, "publish_dtmf", publish)
    held.line.meet(BRIEF)
    for key in KEYS:
        await held.line.press(key)
    assert [(code, digit) for _, code, digit in played] == [
        *((number, str(number)) for number in range(10)),
        *((10, "*"), (11, "#"), (12, "A"), (13, "B"), (14, "C"), (15, "D")),
    ]
    assert {identity for identity, _, _ in played} == {PHONE}


async def test_a_key_that_livekit_does_not_take(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def publish(*_: Any, **__: Any) -> None:
        raise rtc.participant.PublishDTMFError("no")

    monkeypatch.setattr(room_line, "publish_dtmf", publish)
    held.line.meet(BRIEF)
    with pytest.raises(LineError, match="could not be played"):
        await held.line.press("1")


async def test_sound_that_livekit_does_not_take(held: Held) -> None:
    async def start(*, room: Any) -> None:
        assert room is held.room
        raise rtc.participant.PublishTrackError("no")

    with pytest.raises(LineError):
        await held.line.accompany(cast(Any, SimpleNamespace(start=start)))


async def test_a_phone_is_referred_by_the_gateway(held: Held) -> None:
    async def ask() -> TransferResult:
        return TransferResult(outcome="transferred")

    assert (await held.line.refer(ask)).outcome == "transferred"


@pytest.mark.parametrize("when", ["before", "later", "never"])
async def test_a_former_agents_human_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    sent: list[str] = []

    async def send_away(_room: object, _livekit: object, identity: str, **_: Any) -> None:
        sent.append(identity)

    monkeypatch.setattr(hang_up, "send_away", send_away)
    monkeypatch.setattr(room_line, "_DIALLED_WITHIN_S", 0 if when == "never" else 10)
    held, transfer_id = Held(), f"trf_{'1' * 24}"
    human = human_identity(transfer_id)
    await held.start()
    held.room.joins()
    if when == "before":
        held.room.joins(human)
    dismissing = asyncio.create_task(held.line.dismiss(transfer_id))
    await asyncio.sleep(0)
    if when == "later":
        held.room.joins(human)
    await asyncio.wait_for(dismissing, 5)
    assert sent == ([] if when == "never" else [human])
