"""The bridge under a flood of INVITEs, and under dials whose rooms are deleted."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from livekit import api
from livekit.protocol import sip as pb

from core.models import new_id
from dev.phone import Phone, RingOut
from dev.stack import Stack, StackOptions
from dev.stack.sip_backends import WAIT
from sip.bridge.calls.inbound_limits import Limits
from sip.bridge.calls.service import JOINING
from tests.sip.contract.rig import CALLER, IDENTITY, dial_request

pytestmark = [pytest.mark.sip, pytest.mark.attack, pytest.mark.asyncio(loop_scope="session")]

FLOODED, OTHERS = "+15105550177", "+15105550188"
INVITES, WITHIN_S = 150, 2.0
# The rooms of twenty callers at some 2 MB each, native half included, and some headroom.
MAY_GROW_MB = 110


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bridge() -> AsyncIterator[Stack]:
    options = StackOptions(worker=0, gateway=False, providers=False, livekit_config={"webhook": {}})
    async with Stack(options) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def sip(bridge: Stack) -> AsyncIterator[Any]:
    client = bridge.sip_api()
    yield client.sip
    await client.aclose()


@contextlib.asynccontextmanager
async def attached(sip: Any, number: str) -> AsyncIterator[str]:
    """Attach the number to a trunk, with a room for each call; yield the rooms' prefix."""
    trunk = await sip.create_inbound_trunk(
        pb.CreateSIPInboundTrunkRequest(trunk=pb.SIPInboundTrunkInfo(name=number, numbers=[number]))
    )
    prefix = new_id("flood")
    individual = pb.SIPDispatchRuleIndividual(room_prefix=prefix)
    rule = await sip.create_dispatch_rule(
        pb.CreateSIPDispatchRuleRequest(
            dispatch_rule=pb.SIPDispatchRuleInfo(
                rule=pb.SIPDispatchRule(dispatch_rule_individual=individual),
                trunk_ids=[trunk.sip_trunk_id],
            )
        )
    )
    yield prefix
    await sip.delete_dispatch_rule(
        pb.DeleteSIPDispatchRuleRequest(sip_dispatch_rule_id=rule.sip_dispatch_rule_id)
    )
    await sip.delete_trunk(pb.DeleteSIPTrunkRequest(sip_trunk_id=trunk.sip_trunk_id))


class Caller(asyncio.DatagramProtocol):
    """Sends INVITEs from one address, and notes how each was answered."""

    def __init__(self, source_ip: str, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._transport: asyncio.DatagramTransport
        self._target = (host, int(port))
        self._source_ip = source_ip
        self.statuses: dict[str, list[int]] = {}
        self._news = asyncio.Event()
        self._opened: list[tuple[str, str]] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, source_ip: str, target: str) -> AsyncIterator[Caller]:
        loop = asyncio.get_running_loop()
        transport, caller = await loop.create_datagram_endpoint(
            lambda: cls(source_ip, target), local_addr=(source_ip, 0)
        )
        caller._transport = transport
        try:
            yield caller
            for call_id, number in caller._opened:
                if not caller.refused(call_id):
                    caller._send("CANCEL", call_id, number)
            await caller.until(lambda: all(map(caller.final, caller.statuses)))
        finally:
            transport.close()

    def invite(self, number: str) -> str:
        call_id = new_id("invite")
        self.statuses[call_id] = []
        self._opened.append((call_id, number))
        self._send("INVITE", call_id, number)
        return call_id

    def final(self, call_id: str) -> bool:
        return any(status >= 200 for status in self.statuses[call_id])

    def refused(self, call_id: str) -> bool:
        return any(status >= 400 for status in self.statuses[call_id])

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def _send(self, method: str, call_id: str, number: str, to_tag: str = "") -> None:
        ip, port = self._transport.get_extra_info("sockname")
        host, target_port = self._target
        offer = (
            f"v=0\r\no=x 1 1 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\n"
            "m=audio 40000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
        )
        body = offer if method == "INVITE" else ""
        lines = [
            f"{method} sip:{number}@{host}:{target_port} SIP/2.0",
            f"Via: SIP/2.0/UDP {ip}:{port};branch=z9hG4bK{call_id}",
            f"From: <sip:{CALLER}@{ip}>;tag={call_id}",
            f"To: <sip:{number}@{host}>{to_tag}",
            f"Call-ID: {call_id}",
            f"CSeq: 1 {method}",
            f"Contact: <sip:{CALLER}@{ip}:{port}>",
            "Max-Forwards: 70",
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        self._transport.sendto(("\r\n".join(lines) + "\r\n\r\n" + body).encode(), self._target)

    def datagram_received(self, data: bytes, _address: object) -> None:
        first, *lines = data.decode(errors="replace").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        call_id, cseq = headers.get("Call-ID", ""), headers.get("CSeq", "")
        if first.startswith("SIP/2.0 ") and cseq.endswith("INVITE") and call_id in self.statuses:
            status = int(first.split()[1])
            self.statuses[call_id].append(status)
            if status >= 200:
                number = dict(self._opened)[call_id]
                _, tag, value = headers["To"].partition(";tag=")
                self._send("ACK", call_id, number, tag + value)
            self._news.set()


def memory_mb(stack: Stack) -> float:
    with open(f"/proc/{stack.bridge.process.pid}/status") as status:
        resident = next(line for line in status if line.startswith("VmRSS"))
    return int(resident.split()[1]) / 1024


async def test_a_flood_of_invites_is_refused_and_others_go_on(bridge: Stack, sip: Any) -> None:
    limits, target = Limits(), bridge.sip_address
    async with Phone() as phone:  # the first call loads what stays in memory
        first = dial_request(new_id("first"), phone.address, wait_until_answered=True)
        await sip.create_sip_participant(first)
        await (await phone.next_call(WAIT)).hangup()
    before = memory_mb(bridge)
    async with (
        attached(sip, FLOODED) as flooded,
        attached(sip, OTHERS) as others,
        Phone() as phone,
        bridge.api() as livekit,
        Caller.at("127.0.0.1", target) as flood,
        Caller.at("127.0.0.2", target) as caller,
    ):
        phone.behave(RingOut())
        dialled = []
        for number in range(INVITES):
            flood.invite(FLOODED)
            if number % 50 == 25:  # another tenant's calls: one out, one in
                dialled.append(
                    asyncio.create_task(
                        sip.create_sip_participant(dial_request(new_id("out"), phone.address))
                    )
                )
                caller.invite(OTHERS)
            await asyncio.sleep(WITHIN_S / INVITES)
        assert all(info.sip_call_id for info in await asyncio.gather(*dialled))
        for _ in dialled:
            await phone.next_call(WAIT)
        await caller.until(lambda: all(180 in seen for seen in caller.statuses.values()))
        await flood.until(
            lambda: sum(map(flood.final, flood.statuses)) >= INVITES - limits.unanswered_of_trunk
        )
        async with asyncio.timeout(WAIT):
            while len(await rooms(livekit, others)) < len(dialled):  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.05)
        assert len(await rooms(livekit, flooded)) <= limits.unanswered_of_trunk
        assert not any(map(caller.refused, caller.statuses))
        grown = memory_mb(bridge) - before
        answers = Counter(seen[-1] for seen in flood.statuses.values() if seen)
        print(f"{INVITES} INVITEs: {dict(answers)}; {before:.0f} MB grew by {grown:.0f} MB")
        assert grown < MAY_GROW_MB
    log = bridge.log_text("bridge")
    assert "too many calls from one address" in log
    assert log.count("incoming calls refused") < INVITES / 3  # one line counts many
    assert "Traceback" not in log


async def rooms(livekit: api.LiveKitAPI, prefix: str) -> list[str]:
    listed = (await livekit.room.list_rooms(api.ListRoomsRequest())).rooms
    return [room.name for room in listed if room.name.startswith(prefix)]


async def test_dials_whose_rooms_are_deleted_keep_nobody_waiting(bridge: Stack, sip: Any) -> None:
    """The SDK misses a deletion while it connects; such dials must not block the next one."""
    async with Phone() as phone, bridge.api() as livekit:
        phone.behave(RingOut())

        async def begun_and_deleted(room: str) -> str:
            dial = asyncio.create_task(
                sip.create_sip_participant(dial_request(room, phone.address))
            )
            whom = api.RoomParticipantIdentity(room=room, identity=IDENTITY)
            async with asyncio.timeout(WAIT):
                while not dial.done():
                    with contextlib.suppress(api.TwirpError):
                        await livekit.room.get_participant(whom)
                        await livekit.room.delete_room(api.DeleteRoomRequest(room=room))
                        break
                    await asyncio.sleep(0.001)
            try:
                await dial
            except api.TwirpError as error:
                return str(error.code)
            return "joined"

        async with asyncio.TaskGroup() as group:
            gone = [
                group.create_task(begun_and_deleted(new_id("gone"))) for _ in range(2 * JOINING)
            ]
        room = new_id("after")
        assert (await sip.create_sip_participant(dial_request(room, phone.address))).sip_call_id
        codes = Counter(task.result() for task in gone)
    print(dict(codes))
    assert set(codes) <= {"joined", "canceled", "unavailable"}
    assert "never_let_in" in bridge.log_text("bridge") or "removed_unheard" in bridge.log_text(
        "bridge"
    )
