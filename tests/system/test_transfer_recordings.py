"""Recordings of calls that a human takes over: what both phones said, and what ends them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.room import ListParticipantsRequest

from core.audio import Pcm
from dev.alignment.offsets import offsets
from dev.phone import Answer, Phone, PhoneCall
from dev.phone.tracks import SAMPLE_RATE
from dev.stack import Stack, StackOptions
from tests.conftest import AUTH, Gateway, write_agents
from tests.support.alignment import channels
from tests.support.calls import Placed
from tests.system.test_transfers import (
    CALLER_TONE,
    HUMAN_TONE,
    LOUD,
    asking,
    control,
    events,
    hears,
    loudest,
    of,
    sounding,
    tone,
)

pytestmark = [
    pytest.mark.stack,
    pytest.mark.alone,
    pytest.mark.asyncio(loop_scope="session"),
]

AFTER: dict[str, Any] = {"enabled": True, "afterTransfer": True}
UNTIL: dict[str, Any] = {"enabled": True}
OFF_MS = 150.0  # packet buffers of the SIP service and the phones are in no statistic


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def exchange() -> AsyncIterator[Phone]:
    async with Phone() as phone:
        phone.behave(Answer())
        yield phone


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own(exchange: Phone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A stack whose worker may be stopped."""
    folder = tmp_path_factory.mktemp("own")
    write_agents(folder)
    values = {
        **AUTH,
        "agents_dir": folder,
        "default_agent": "greeter",
        "sip_outbound_address": exchange.address,
        "log_level": "DEBUG",
    }
    async with Stack(StackOptions(values=values, stop_grace_s=30)) as running:
        await running.set_providers(control())
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(own: Stack) -> AsyncIterator[Gateway]:
    async with aiohttp.ClientSession(own.gateway_url) as session:
        yield Gateway(session)


@asynccontextmanager
async def handed_over(
    gateway: Gateway, exchange: Phone, recording: dict[str, Any]
) -> AsyncIterator[tuple[Placed, PhoneCall, PhoneCall]]:
    """Yield a recorded call, its caller, and the human who has just taken it."""
    warm: dict[str, Any] = {"transferMode": "warm", "recording": recording}
    async with asking(gateway, exchange, record=True, **warm) as (placed, caller):
        human = await exchange.next_call(10)
        await human.answered(10)
        await human.speech_begins(10)
        await human.play(tone(HUMAN_TONE, 1))
        await human.dtmf("1")
        await events(gateway, placed, "call.transferred")
        async with sounding(caller, CALLER_TONE):
            await hears(human, CALLER_TONE)
        yield placed, caller, human


async def hang_up(gateway: Gateway, placed: Placed, human: PhoneCall, caller: PhoneCall) -> None:
    """The human hangs up, which ends the caller's call as after any warm transfer."""
    await human.hangup()
    await caller.ended(10)
    (ending,) = of(await events(gateway, placed, "call.ended"), "call.ended")
    assert (ending["status"], ending["reason"]) == ("completed", "call_transfer")


async def agent_in(stack: Stack, placed: Placed) -> ParticipantInfo | None:
    async with stack.api() as livekit:
        listed = await livekit.room.list_participants(ListParticipantsRequest(room=placed.room))
    agents = (one for one in listed.participants if one.kind == ParticipantInfo.Kind.AGENT)
    return next(agents, None)


def in_both(recorded: Pcm, far: Pcm, since_s: float) -> list[float]:
    """Return the offsets of what a phone said or heard from ``since_s`` on."""
    return [each.ms for each in offsets(recorded, far) if each.at_s > since_s]


async def test_the_human_is_recorded_in_the_agents_place(
    gateway: Gateway, exchange: Phone, own: Stack
) -> None:
    async with handed_over(gateway, exchange, AFTER) as (placed, caller, human):
        since_s = len(caller.recording.received) / SAMPLE_RATE
        there = await agent_in(own, placed)
        assert there is not None and not there.tracks
        await caller.say("Hello, I would like a table for seven people, please.")
        await human.say("Of course, madam. On which evening would you like to come?")
        paused = await gateway.post(f"/v1/calls/{placed.call_id}/recording/pause")
        assert (paused.status, paused.body["recording"]) == (200, "paused")
        await asyncio.gather(caller.play(tone(CALLER_TONE, 1)), human.play(tone(HUMAN_TONE, 1)))
        resumed = await gateway.post(f"/v1/calls/{placed.call_id}/recording/resume")
        assert (resumed.status, resumed.body["recording"]) == (200, "on")
        await human.dtmf("5")
        await caller.dtmf("4")
        await caller.say("The day after tomorrow, at half past seven in the evening.")
        await human.say("I have written that down for you. Thank you and goodbye.")
        await hang_up(gateway, placed, human, caller)
    timeline = await events(gateway, placed, "recording.stored")
    assert of(timeline, "recording.stopped") == [{"reason": "call_ended"}]
    assert of(timeline, "agent.left") == [{"cause": "handed_over"}]
    assert [data["digit"] for data in of(timeline, "dtmf.received")] == ["9"]
    left, right = recorded_in(own, placed)
    said = in_both(left, caller.recording.sent, since_s)
    heard = in_both(right, caller.recording.received, since_s)
    assert min(len(said), len(heard)) >= 6
    middle = (sorted(said)[len(said) // 2] + sorted(heard)[len(heard) // 2]) / 2
    assert all(abs(ms - middle) < OFF_MS for ms in (*said, *heard)), (said, heard)
    assert loudest(right[::2], HUMAN_TONE) < LOUD, "told before the handover, or in the pause"
    assert loudest(left[len(left) // 2 :: 2], CALLER_TONE) < LOUD, "paused"


async def test_without_the_field_the_recording_ends_with_the_handover(
    gateway: Gateway, exchange: Phone, own: Stack
) -> None:
    async with handed_over(gateway, exchange, UNTIL) as (placed, caller, human):
        timeline = await events(gateway, placed, "agent.left")
        assert of(timeline, "recording.stopped") == [{"reason": "transfer"}]
        async with sounding(human, HUMAN_TONE):
            await hears(caller, HUMAN_TONE)
        assert await agent_in(own, placed) is None
        await hang_up(gateway, placed, human, caller)
    await events(gateway, placed, "recording.stored")
    for channel in recorded_in(own, placed):
        assert loudest(channel[::2], HUMAN_TONE) < LOUD
        assert loudest(channel[::2], CALLER_TONE) < LOUD


async def test_the_humans_talk_on_when_the_recorder_is_killed(
    gateway: Gateway, exchange: Phone, own: Stack
) -> None:
    async with handed_over(gateway, exchange, AFTER) as (placed, caller, human):
        async with sounding(human, HUMAN_TONE):
            await asyncio.sleep(8)  # audio is on the disk after 5 s
        os.kill(writer_of(f"{placed.call_id}.wav"), signal.SIGKILL)
        await events(gateway, placed, "recording.stored")
        _, right = recorded_in(own, placed)
        assert loudest(right[::2], HUMAN_TONE) > LOUD
        async with sounding(human, HUMAN_TONE):
            await hears(caller, HUMAN_TONE)
        await hang_up(gateway, placed, human, caller)


async def test_a_worker_that_is_stopped_does_not_wait_for_the_humans(
    gateway: Gateway, exchange: Phone, own: Stack
) -> None:
    """This test is the last: it ends the worker."""
    async with handed_over(gateway, exchange, AFTER) as (placed, caller, human):
        async with sounding(human, HUMAN_TONE):
            await hears(caller, HUMAN_TONE)
        await own.worker.stop()
        assert "calls cut" not in own.log_text("worker")
        timeline = await events(gateway, placed, "recording.stored")
        assert of(timeline, "recording.stopped") == [{"reason": "worker_stopped"}]
        assert not of(timeline, "call.ended")
        _, right = recorded_in(own, placed)
        assert loudest(right[::2], HUMAN_TONE) > LOUD
        async with sounding(caller, CALLER_TONE):
            await hears(human, CALLER_TONE)
        async with sounding(human, HUMAN_TONE):
            await hears(caller, HUMAN_TONE)
        await hang_up(gateway, placed, human, caller)


def recorded_in(stack: Stack, placed: Placed) -> tuple[Pcm, Pcm]:
    return channels(stack.settings.data_dir / "recordings", placed.call_id)


def writer_of(name: str) -> int:
    """Return the process that has a file of this name open."""
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if path.readlink().name == name:
                return int(path.parts[2])
        except OSError:
            continue
    raise AssertionError(f"nobody writes {name}")
