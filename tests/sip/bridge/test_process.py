"""The bridge as a process: start, stop, restart, and the loss of LiveKit during a call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import pytest
from livekit import rtc
from livekit.api import ListParticipantsRequest, LiveKitAPI, RoomParticipantIdentity
from livekit.protocol import sip as pb

from core.legs import LOST
from dev.phone import Phone, PhoneCall, RingOut
from dev.process import inherited_environment
from dev.stack import Stack, StackOptions
from dev.stack.component import Component
from dev.stack.options import ROOT
from dev.stack.sip_backends import WAIT
from sip.participant import LiveKit, Participant
from tests.sip.contract.rig import CALLED, IDENTITY, dial_request, new_room

pytestmark = pytest.mark.sip

# Until the SDK's own attempts or the bridge's grace period are over, with a margin.
ROOM_LOST_S = 45.0


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    options = StackOptions(worker=0, gateway=False, providers=False, livekit_config={"webhook": {}})
    async with Stack(options) as stack:
        yield stack


@pytest.fixture
async def sip(stack: Stack) -> AsyncIterator[Any]:
    api: LiveKitAPI = stack.sip_api()
    yield api.sip
    await api.aclose()


@pytest.fixture
async def phone() -> AsyncIterator[Phone]:
    async with Phone() as phone:
        yield phone


async def restart(bridge: Component, **changes: str) -> None:
    """Restart the bridge with other settings."""
    await bridge.stop()
    bridge.process.env = {**(bridge.process.env or {}), **changes}
    await bridge.start()


class Line:
    """A TCP relay to LiveKit that can drop the server's data (``deaf``), hold it, or be cut."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._target = (address.hostname, address.port)
        self._writers: list[asyncio.StreamWriter] = []
        self.deaf = False
        self.answers = asyncio.Event()
        """While clear, the server's data is held."""
        self.answers.set()
        self.connections = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Abort all connections; new ones pass the server's data on again."""
        self.deaf = False
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        answers, onwards = await asyncio.open_connection(*self._target)
        self._writers += [writer, onwards]
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pass(reader, onwards), self._pass(answers, writer, True))

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, said: bool = False
    ) -> None:
        while data := await source.read(65_536):
            if said:
                await self.answers.wait()
            if not (said and self.deaf):
                sink.write(data)


async def connect(sip: Any, phone: Phone) -> PhoneCall:
    await sip.create_sip_participant(
        dial_request(new_room(), phone.address, wait_until_answered=True)
    )
    call = await phone.next_call(WAIT)
    await call.answered(WAIT)
    return call


async def health(stack: Stack) -> Any:
    async with aiohttp.ClientSession() as session, session.get(stack.bridge_url) as response:
        assert response.status == 200
        return await response.json()


async def no_calls(stack: Stack) -> None:
    """Wait until the bridge has no call left."""
    async with asyncio.timeout(WAIT):
        while (await health(stack))["live_calls"]:  # noqa: ASYNC110 - nothing to await
            await asyncio.sleep(0.1)


async def test_it_says_where_it_listens(stack: Stack) -> None:
    answer = await health(stack)
    assert answer == {
        "status": "OK",
        "http": stack.bridge_url,
        "sip": stack.sip_address,
        "live_calls": 0,
    }
    ready = f"sip.bridge ready http={stack.bridge_url} sip={stack.sip_address}"
    assert ready in stack.log_text("bridge")


async def test_a_stop_hangs_up_every_call(stack: Stack, sip: Any, phone: Phone) -> None:
    up = [await connect(sip, phone), await connect(sip, phone)]
    phone.behave(RingOut())
    await sip.create_sip_participant(dial_request(new_room(), phone.address))
    ringing = await phone.next_call(WAIT)
    assert (await health(stack))["live_calls"] == 3
    assert await stack.bridge.process.stop() == 0
    assert [(await call.ended(WAIT)).how for call in up] == ["bye", "bye"]
    assert (await ringing.ended(WAIT)).how == "cancel"
    assert "Traceback" not in stack.log_text("bridge")


async def test_what_a_killed_bridge_left_is_removed(stack: Stack, sip: Any, phone: Phone) -> None:
    """The next run removes its legs before it takes a call, and leaves those of others alone."""
    room = new_room()
    await sip.create_sip_participant(dial_request(room, phone.address, wait_until_answered=True))
    settings = stack.settings
    assert settings.livekit_api_key is not None and settings.livekit_api_secret is not None
    secret = settings.livekit_api_secret.get_secret_value()
    elsewhere = LiveKit(settings.livekit_url, settings.livekit_api_key, secret, mark="another")
    theirs = Participant(room, "theirs", "Their phone", "", {})
    other = rtc.Room()
    await other.connect(settings.livekit_url, theirs.token(elsewhere))
    lost: list[str] = []
    other.on("participant_attributes_changed", lambda changed, _who: lost.extend(changed))
    async with stack.api() as api:
        whole_room = ListParticipantsRequest(room=room)
        before = (await api.room.list_participants(whole_room)).participants
        assert {one.identity for one in before} == {IDENTITY, "theirs"}
        await stack.bridge.kill()
        await stack.bridge.start()
        after = (await api.room.list_participants(whole_room)).participants
    assert [one.identity for one in after] == ["theirs"]
    assert LOST in lost
    assert "legs of an earlier run removed" in stack.log_text("bridge")
    await other.disconnect()


async def test_trunks_survive_a_restart(stack: Stack, sip: Any) -> None:
    trunk = pb.SIPInboundTrunkInfo(numbers=[CALLED])
    made = await sip.create_inbound_trunk(pb.CreateSIPInboundTrunkRequest(trunk=trunk))
    await stack.bridge.stop()
    await stack.bridge.start()
    listed = await sip.list_inbound_trunk(pb.ListSIPInboundTrunkRequest())
    assert [item.sip_trunk_id for item in listed.items] == [made.sip_trunk_id]


async def test_calls_leave_nothing_behind(stack: Stack, sip: Any, phone: Phone) -> None:
    async def one(number: int) -> None:
        request = dial_request(
            new_room(), phone.address, sip_call_to=f"+1555{number}", wait_until_answered=True
        )
        await sip.create_sip_participant(request)

    async def round_of_calls() -> None:
        await asyncio.gather(*(one(number) for number in range(6)))
        for call in phone.calls[-6:]:
            await call.answered(WAIT)
            await call.hangup()
        await no_calls(stack)

    await round_of_calls()  # the first calls and the client open files that stay open
    pid = stack.bridge.process.pid
    before = len(os.listdir(f"/proc/{pid}/fd"))
    await round_of_calls()
    async with asyncio.timeout(WAIT):
        while len(os.listdir(f"/proc/{pid}/fd")) > before:  # noqa: ASYNC110 - nothing to await
            await asyncio.sleep(0.1)


async def test_livekit_goes_away(stack: Stack, sip: Any, phone: Phone) -> None:
    call = await connect(sip, phone)
    await stack.livekit.process.kill()
    ended = await call.ended(ROOM_LOST_S)
    assert (ended.by, ended.how) == ("remote", "bye")
    await no_calls(stack)
    with pytest.raises(Exception, match="could not be joined"):
        await sip.create_sip_participant(dial_request(new_room(), phone.address))
    await stack.livekit.start()
    await connect(sip, phone)


async def test_a_caller_who_gives_up_while_the_room_is_joined(
    stack: Stack, sip: Any, phone: Phone
) -> None:
    """The room is told why, although the phone hung up before the bridge had joined."""
    room, changes = new_room(), asyncio.Queue[str]()
    rule = pb.SIPDispatchRule(dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name=room))
    await sip.create_dispatch_rule(pb.CreateSIPDispatchRuleRequest(rule=rule))
    settings = stack.settings
    assert settings.livekit_api_key is not None and settings.livekit_api_secret is not None
    secret = settings.livekit_api_secret.get_secret_value()
    watcher, came = rtc.Room(), asyncio.Event()
    watcher.on("participant_connected", lambda _: came.set())
    watcher.on(
        "participant_attributes_changed",
        lambda changed, _: changes.put_nowait(changed.get("sip.callStatus", "")),
    )
    token = Participant(room, "watcher", "", "", {}).token(
        LiveKit(settings.livekit_url, settings.livekit_api_key, secret, mark="another")
    )
    await watcher.connect(settings.livekit_url, token)
    async with Line(settings.livekit_url) as line, asyncio.timeout(WAIT):
        await restart(stack.bridge, LIVEKIT_URL=line.url)
        line.answers.clear()
        call = await phone.dial(f"sip:{CALLED}@{stack.sip_address}")
        await came.wait()
        await call.hangup()
        await call.ended(WAIT)
        line.answers.set()
        while await changes.get() != "hangup":
            pass
        await no_calls(stack)
    await watcher.disconnect()


async def test_a_removal_that_is_not_heard(stack: Stack, sip: Any, phone: Phone) -> None:
    """The connection breaks before the room's last message is read, so the SDK would rejoin."""
    async with Line(stack.settings.livekit_url) as line:
        await restart(stack.bridge, LIVEKIT_URL=line.url)
        room = new_room()
        await sip.create_sip_participant(
            dial_request(room, phone.address, wait_until_answered=True)
        )
        call = await phone.next_call(WAIT)
        await call.answered(WAIT)
        line.deaf = True
        async with stack.api() as livekit:
            whom = RoomParticipantIdentity(room=room, identity=IDENTITY)
            await livekit.room.remove_participant(whom)
            line.cut()
            assert (await call.ended(WAIT)).how == "bye"
            await no_calls(stack)
            there = await livekit.room.list_participants(ListParticipantsRequest(room=room))
    assert list(there.participants) == []


async def test_a_connection_that_breaks_for_a_moment(stack: Stack, sip: Any, phone: Phone) -> None:
    """The room still has the participant, so the call goes on."""
    async with Line(stack.settings.livekit_url) as line:
        await restart(stack.bridge, LIVEKIT_URL=line.url)
        call = await connect(sip, phone)
        before = line.connections
        line.cut()
        async with asyncio.timeout(WAIT):
            while line.connections < before + 2:  # noqa: ASYNC110 - nothing to await
                await asyncio.sleep(0.01)  # the bridge's lookup, and the SDK's reconnection
        with pytest.raises(TimeoutError):
            await call.ended(2)


async def test_secrets_reach_no_log(stack: Stack, sip: Any, phone: Phone) -> None:
    await restart(stack.bridge, LOG_LEVEL="DEBUG")
    config = pb.SIPOutboundConfig(
        hostname=phone.address, auth_username="anna", auth_password="hunter2-hunter2"
    )
    await sip.create_sip_participant(
        dial_request("r1", phone.address, trunk=config, wait_until_answered=True)
    )
    text = stack.log_text("bridge")
    secret = stack.settings.livekit_api_secret
    assert secret is not None and secret.get_secret_value() not in text
    assert "hunter2" not in text and "Authorization" not in text and "eyJ" not in text
    assert CALLED not in text


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LIVEKIT_API_KEY": ""}, "LIVEKIT_API_KEY and LIVEKIT_API_SECRET must be set"),
        ({"BRIDGE_SIP_LISTEN": "nowhere"}, "BRIDGE_SIP_LISTEN"),
        ({"BRIDGE_SIP_LISTEN": "example.com:5060"}, "BRIDGE_SIP_LISTEN"),
        ({"BRIDGE_SIP_LISTEN": "127.0.0.1:0", "DATA_DIR": "broken"}, "bridge.json"),
    ],
)
async def test_what_it_needs_it_names(
    tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bridge.json").write_text("{")
    env = {
        **inherited_environment(),
        "PYTHONPATH": str(ROOT),
        "ENV_FILE": "",
        "LIVEKIT_API_KEY": "k",
        "LIVEKIT_API_SECRET": "s" * 32,
        "BRIDGE_PORT": "0",
        **variables,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "sip.bridge"),
        cwd=tmp_path,
        env=env,
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    _, errors = await asyncio.wait_for(process.communicate(), WAIT)
    assert process.returncode == 1
    assert message in errors.decode()
    assert "Traceback" not in errors.decode()
