"""Transfers of callers to humans, with real phones: what each phone hears and gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from livekit.protocol.room import ListParticipantsRequest, ListRoomsRequest

from core.audio import Pcm
from dev import scenario
from dev.phone import Answer, CallEnded, Phone, PhoneCall, Reject, RingOut
from dev.phone.tracks import SAMPLE_RATE
from dev.providers import Control, Rule, ToolCall
from dev.sip.digest import Credentials
from dev.speech.listen import level_dbfs
from dev.stack import Stack
from dev.standins.trunk import Trunk
from tests.conftest import ACME, Gateway
from tests.support.calls import Placed, request, told

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

TO = "+15551230077"
Timeline = list[tuple[str, dict[str, Any]]]
BRIEFING = "A table for seven."
# Hz; neither the music nor any voice holds one of them for a WINDOW.
CALLER_TONE, HUMAN_TONE = 1500, 2100
WINDOW = SAMPLE_RATE * 2 // 5
LOUD, QUIET = 3000, 800  # of 32767; the tones have 8000, speech there about 100


def control() -> Control:
    """Return a script: on 9 the agent transfers, and apologises after that; on 8 it presses 6."""
    document = scenario.control()
    rules = [
        Rule(pattern=r"pressed 9\b", reply="One moment.", call=ToolCall(name="transfer_call")),
        Rule(role="tool", tool_name="transfer_call", reply="I am sorry."),
        Rule(pattern=r"pressed 8\b", call=ToolCall(name="send_dtmf", arguments={"digits": "6"})),
        Rule(role="tool", tool_name="send_dtmf", reply="There."),
    ]
    document.openai.scripts["default"].rules[:0] = rules
    return document


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def script(stack: Stack) -> AsyncIterator[None]:
    await stack.set_providers(control())
    yield
    await stack.set_providers(scenario.control())


async def agent(gateway: Gateway, **changes: Any) -> str:
    body = {
        "name": "Switchboard",
        "voiceMode": "hosted",
        "systemPrompt": "Connect.",
        "transferNumber": TO,
        "transferBriefing": BRIEFING,
        **changes,
    }
    made = await gateway.post("/v1/agents", json=body)
    assert made.status == 200, made.body
    return str(made.body["id"])


@contextlib.asynccontextmanager
async def asking(
    gateway: Gateway,
    phone: Phone,
    sip: dict[str, str] | None = None,
    *,
    record: bool = False,
    **changes: Any,
) -> AsyncIterator[tuple[Placed, PhoneCall]]:
    """Yield a call whose caller has just asked for a human. ``sip``: the call's own trunk."""
    async with asking_nothing(gateway, phone, sip, record=record, **changes) as (placed, call):
        await call.dtmf("9")
        yield placed, call


@contextlib.asynccontextmanager
async def asking_nothing(
    gateway: Gateway,
    phone: Phone,
    sip: dict[str, str] | None = None,
    *,
    record: bool = False,
    **changes: Any,
) -> AsyncIterator[tuple[Placed, PhoneCall]]:
    """Yield a call whose caller talks with the agent."""
    body = request("", agent=await agent(gateway, **changes), sip=sip, record=record)
    placed = await Placed.place(gateway, body)
    call = await phone.next_call(10)
    await call.answered(10)
    for event in ("agent.ready", "call.answered"):
        await told(gateway, placed.call_id, event)
    try:
        yield placed, call
    except Exception as error:
        so_far: Timeline = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await events(gateway, placed, "call.ended", into=so_far)
        error.add_note(f"timeline: {so_far}")
        raise


def at(phone: Phone) -> dict[str, str]:
    return {"outbound_address": phone.address}


def tone(frequency: int, seconds: float) -> Pcm:
    at = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (8000 * np.sin(2 * np.pi * frequency * at)).astype(np.int16)


def loudest(pcm: Pcm, frequency: int) -> float:
    """Return the amplitude of the tone in the window where it is loudest."""
    at = np.arange(WINDOW) / SAMPLE_RATE
    wave = np.exp(-2j * np.pi * frequency * at)
    windows = range(0, max(1, len(pcm) - WINDOW), WINDOW // 4)
    levels = [abs(np.dot(pcm[i : i + WINDOW], wave[: len(pcm[i : i + WINDOW])])) for i in windows]
    return float(max(levels)) * 2 / WINDOW


@contextlib.asynccontextmanager
async def sounding(call: PhoneCall, frequency: int) -> AsyncIterator[None]:
    playing = asyncio.create_task(call.play(tone(frequency, 60)))
    try:
        yield
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)


async def hears(call: PhoneCall, frequency: int) -> None:
    """Wait until the phone hears the tone, from now on."""
    begin = len(call.recording.received)
    async with asyncio.timeout(15):
        while loudest(call.recording.received[begin:], frequency) < LOUD:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def events(
    gateway: Gateway,
    placed: Placed,
    until: str,
    times: int = 1,
    *,
    into: Timeline | None = None,
) -> Timeline:
    """Return the timeline up to the ``times``-th event of the type ``until``.

    ``into`` gets each event as it comes.
    """
    path = f"/v1/calls/{placed.call_id}/events"
    found: Timeline = [] if into is None else into
    async with asyncio.timeout(30), gateway.session.get(path, headers=ACME) as stream:
        type = ""
        async for line in stream.content:
            name, _, value = line.decode().strip().partition(": ")
            if name == "event":
                type = value
            elif name == "data":
                found.append((type, json.loads(value).get("data", {})))
                if [known for known, _ in found].count(until) == times:
                    break
    return found


def of(timeline: Timeline, type: str) -> list[dict[str, Any]]:
    return [data for known, data in timeline if known == type]


async def spoken(caller: PhoneCall, digit: str) -> None:
    """Press a key once the agent is silent, and so back with the caller."""
    await caller.silence(500, 15)
    await caller.dtmf(digit)


async def test_a_human_takes_the_call(gateway: Gateway, exchange: Phone) -> None:
    exchange.behave(Answer(after_s=1))
    async with asking(gateway, exchange, transferMode="warm") as (placed, caller):
        human = await exchange.next_call(10)
        assert human.called == TO
        async with sounding(caller, CALLER_TONE):
            await human.answered(10)
            await human.speech_begins(10)
            await human.play(tone(HUMAN_TONE, 2))
            held = caller.recording.received[-2 * SAMPLE_RATE :]
            assert level_dbfs(held) > -45, "no music"
            assert loudest(caller.recording.received, HUMAN_TONE) < QUIET
            assert loudest(human.recording.received, CALLER_TONE) < QUIET
            await human.dtmf("1")
            timeline = await events(gateway, placed, "agent.left")
            await hears(human, CALLER_TONE)
        async with sounding(human, HUMAN_TONE):
            await hears(caller, HUMAN_TONE)
        await caller.silence(500, 10)  # the music has stopped
        await human.hangup()
        await caller.ended(10)
    assert (await placed.outcome())[:2] == ("completed", "call_transfer")
    steps = [type for type, _ in timeline if type.startswith(("transfer.", "call.transfer"))]
    assert [step for step in steps if step != "transfer.ringing"] == [
        "transfer.started",
        "transfer.answered",
        "transfer.accepted",
        "call.transferred",
    ]
    assert of(timeline, "transfer.started") == [{"to": TO, "mode": "warm"}]
    assert of(timeline, "agent.left") == [{"cause": "handed_over"}]


@pytest.mark.attack
async def test_keys_do_not_cross_a_consultation(gateway: Gateway, exchange: Phone) -> None:
    """Neither phone gets the other's keys as RFC 4733 events, not even the key that takes the call,
    and the agent tells the two apart. Each phone gets only the keys pressed afterwards."""
    async with asking(gateway, exchange, transferMode="warm") as (placed, caller):
        human = await exchange.next_call(10)
        await human.answered(10)
        await human.speech_begins(10)
        await caller.dtmf("15")  # not the human's yes
        await human.dtmf("7")
        await human.dtmf("1")
        timeline = await events(gateway, placed, "agent.left")
        async with sounding(caller, CALLER_TONE):
            await hears(human, CALLER_TONE)
        async with sounding(human, HUMAN_TONE):
            await hears(caller, HUMAN_TONE)
        await caller.dtmf("4")
        await human.dtmf("3")
        assert (await human.next_digit(10)).digit == "4"
        assert (await caller.next_digit(10)).digit == "3"
        await human.hangup()
        await caller.ended(10)
    pressed = [data["digit"] for data in of(timeline, "dtmf.received")]
    assert pressed == ["9", "1", "5"], "the human's are nobody's turn"
    order = [type for type, _ in timeline]
    last_key = len(order) - 1 - order[::-1].index("dtmf.received")
    assert last_key < order.index("transfer.accepted"), "taken by the human, not by the caller"
    turns = (await placed.record())["transcripts"]
    assert not [turn for turn in turns if "7" in turn["transcript"]]


@pytest.mark.attack
async def test_an_agents_keys_are_for_its_caller_only(gateway: Gateway, exchange: Phone) -> None:
    """Another phone in the room, which hears the agent, gets none of its keys."""
    async with asking_nothing(gateway, exchange) as (placed, caller):
        body = request("", room_name=placed.room, participant_identity="other", sip=None)
        await Placed.place(gateway, {**body, "agent": None})
        other = await exchange.next_call(10)
        await other.answered(10)
        async with sounding(caller, CALLER_TONE):
            await hears(other, CALLER_TONE)
        await caller.dtmf("8")
        assert (await caller.next_digit(10)).digit == "6"
        await caller.dtmf("3")
        assert [(await other.next_digit(10)).digit for _ in range(2)] == ["8", "3"]
        await caller.hangup()
        await other.hangup()


async def test_nobody_takes_the_call(gateway: Gateway, exchange: Phone) -> None:
    behaviours = iter((Answer(), Reject(486), Reject(603), RingOut()))
    exchange.behave(lambda _: next(behaviours))
    warm: dict[str, Any] = {"transferMode": "warm", "transferRingingMs": 1500}
    async with asking(gateway, exchange, **warm) as (placed, caller):
        for times in (1, 2, 3):
            human = await exchange.next_call(10)
            timeline = await events(gateway, placed, "transfer.failed", times)
            await human.ended(10)
            if times < 3:
                await spoken(caller, "9")
        await caller.listen(15, since_ms=caller.now_ms())
        await caller.hangup()
    assert (await placed.outcome())[:2] == ("completed", "user_hangup")
    failed = [
        (told["reason"], told.get("sipStatusCode")) for told in of(timeline, "transfer.failed")
    ]
    assert failed == [("busy", 486), ("rejected", 603), ("no_answer", None)]


async def test_declined_by_voice_and_given_up_by_the_caller(
    gateway: Gateway, exchange: Phone
) -> None:
    async with asking(gateway, exchange, transferMode="warm") as (placed, caller):
        human = await exchange.next_call(10)
        await human.answered(10)
        await human.listen(20, end_silence_ms=1000)
        with contextlib.suppress(CallEnded):  # it may be understood before its end
            await human.say(scenario.GOODBYE)  # a no
        await human.ended(20)
        timeline = await events(gateway, placed, "transfer.failed")
        assert of(timeline, "transfer.failed") == [{"reason": "declined"}]
        await spoken(caller, "9")
        human = await exchange.next_call(10)
        await human.answered(10)
        await human.speech_begins(10)
        await caller.hangup()
        await human.ended(10)
    assert (await placed.outcome())[:2] == ("completed", "user_hangup")


@pytest.mark.attack
async def test_a_call_with_its_own_trunk_finds_its_human_there(
    gateway: Gateway, phone: Phone, exchange: Phone, stack: Stack
) -> None:
    """The human is dialled through the request's trunk with its password, which is nowhere in plain
    text; nothing of the call reaches the default trunk."""
    phone.behave(lambda call: RingOut() if call.called == TO else Answer())
    user, password = "anna", "pw-of-anna-0815"
    async with (
        Trunk(phone.address, Credentials(user, password)) as trunk,
        stack.api() as livekit,
    ):
        sip = {
            "outbound_address": trunk.address,
            "auth_username": user,
            "auth_password": password,
        }
        async with asking(gateway, phone, sip, transferMode="warm") as (placed, caller):
            human = await phone.next_call(10)
            assert trunk.seen.called[-1] == human.called == TO
            assert trunk.seen.callers == ["+15105550123"] * 2
            room = str(await livekit.room.list_rooms(ListRoomsRequest(names=[placed.room])))
            present = await livekit.room.list_participants(
                ListParticipantsRequest(room=placed.room)
            )
            assert len(present.participants) == 3
            await human.hangup()
            timeline = await events(gateway, placed, "transfer.failed")
            await caller.hangup()
        record = await placed.record()
        assert trunk.gate is not None and set(trunk.gate.usernames) == {user}
    assert exchange.invites == 0
    assert of(timeline, "transfer.started") == [{"to": TO, "mode": "warm"}]
    assert password not in f"{room} {present} {timeline} {record}"
    files = [path for path in stack.run_dir.rglob("*") if path.is_file()]
    assert {"gateway.log", "bridge.log", "switchroom.db"} <= {path.name for path in files}
    assert [path.name for path in files if password.encode() in path.read_bytes()] == []


async def test_the_callers_phone_is_sent_to_the_human(gateway: Gateway, exchange: Phone) -> None:
    async with (
        Phone(transfer_route=exchange.address) as phone,
        asking(gateway, phone, at(phone)) as (placed, caller),
    ):
        human = await exchange.next_call(10)
        assert human.called == TO
        await caller.ended(10)
        assert caller.transfers[0].succeeded
        assert (await placed.outcome())[:2] == ("completed", "call_transfer")
        assert human.ending is None
    timeline = await events(gateway, placed, "call.transferred")
    assert of(timeline, "call.transferred") == [{"to": TO, "mode": "cold"}]


async def test_a_phone_that_will_not_be_sent(gateway: Gateway) -> None:
    async with (
        Phone(follow_transfers=False) as phone,
        asking(gateway, phone, at(phone)) as (placed, caller),
    ):
        timeline = await events(gateway, placed, "transfer.failed")
        await caller.listen(15, since_ms=caller.now_ms())
        await caller.hangup()
        assert (await placed.outcome())[:2] == ("completed", "user_hangup")
    (failed,) = of(timeline, "transfer.failed")
    assert (failed["reason"], failed["sipStatusCode"]) == ("rejected", 603)
