"""The SIP guard on a running stack: nothing arrives at a listener that a tenant may not call."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from livekit import api
from livekit.api import LiveKitAPI
from livekit.protocol import sip as pb

from core.models import new_id
from dev.phone import Phone
from dev.process import ManagedProcess, inherited_environment
from dev.stack import Stack
from dev.stack.environment import GivenSettings, as_variables
from dev.stack.options import ROOT
from dev.stack.ports import PORTS, listening
from dev.stack.sip_backends import WAIT
from gateway.keys import SIP_GUARD, call_services
from sip.guard import TENANT_DIAL, SipGuard
from tests.conftest import ACME, Gateway
from tests.sip.contract.rig import dial_request
from tests.support.inprocess import Running, running, settings_in

pytestmark = [
    pytest.mark.stack,
    pytest.mark.attack,
    pytest.mark.asyncio(loop_scope="session"),
]

ANSWER_SDP = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=audio {port} RTP/AVP 0\r\n"
)


class Ear(asyncio.DatagramProtocol):
    """A UDP and a TCP socket on the same port that note everything they receive."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.sources: list[tuple[str, int]] = []
        self.on_request: Callable[[str, tuple[str, int]], None] = lambda _text, _source: None
        self._more = asyncio.Event()

    async def open(self) -> None:
        self.port = PORTS.take("127.0.0.1")  # free for TCP and UDP
        self._tcp = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", self.port)
        )

    def close(self) -> None:
        self._udp.close()
        self._tcp.close()
        PORTS.give_back(self.port)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data[:1].isalpha():  # SIP, not RTP
            self._note(data.decode(), addr)
            self.on_request(data.decode(), addr)

    def send(self, text: str, to: tuple[str, int]) -> None:
        self._udp.sendto(text.encode(), to)

    async def until(self, begins: str) -> str:
        async with asyncio.timeout(WAIT):
            while True:
                self._more.clear()
                for text in self.heard:
                    if text.startswith(begins):
                        return text
                await self._more.wait()

    async def _connected(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._note("TCP", ("", 0))
        writer.close()

    def _note(self, text: str, source: tuple[str, int]) -> None:
        self.heard.append(text)
        self.sources.append(source)
        self._more.set()


def reply(request: str, status: str, *more: str, sdp: str = "") -> str:
    kept = [
        line
        for line in request.split("\r\n\r\n")[0].split("\r\n")
        if line.partition(":")[0].lower() in {"via", "from", "to", "call-id", "cseq"}
    ]
    lines = [f"{line};tag=far" if line.startswith("To:") else line for line in kept]
    head = [f"SIP/2.0 {status}", *lines, *more, f"Content-Length: {len(sdp)}"]
    if sdp:
        head.insert(-1, "Content-Type: application/sdp")
    return "\r\n".join(head) + f"\r\n\r\n{sdp}"


@pytest_asyncio.fixture(loop_scope="session")
async def ear() -> AsyncIterator[Ear]:
    one = Ear()
    await one.open()
    yield one
    one.close()


@pytest_asyncio.fixture(loop_scope="session")
async def far() -> AsyncIterator[Ear]:
    one = Ear()
    await one.open()
    yield one
    one.close()


@dataclass
class Guarded:
    """A gateway and a bridge without SIP_ALLOW_PRIVATE, on the stack's LiveKit."""

    gateway: Running
    sip: Any
    sip_address: str

    async def call(self, address: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        body = {
            "room_name": new_id("room"),
            "participant_name": "P",
            "participant_identity": "p",
            "from_phone_number": "+14155550100",
            "to_phone_number": "+14155550199",
            "agent": None,
            "sip": {"outbound_address": address},
            **changes,
        }
        async with self.gateway.http.post("/sip/call", json=body, headers=ACME) as answer:
            return answer.status, await answer.json()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("guarded")
    key, secret = stack.settings.livekit_api_key, stack.settings.livekit_api_secret
    assert key is not None and secret is not None
    ports = [PORTS.take(), PORTS.take()]
    url = f"http://127.0.0.1:{ports[0]}"
    livekit: dict[str, Any] = {
        "livekit_url": stack.settings.livekit_url,
        "livekit_sip_url": url,
        "livekit_api_key": key,
        "livekit_api_secret": secret.get_secret_value(),
        "bridge_sip_listen": f"127.0.0.1:{ports[1]}",
        "data_dir": folder,
    }
    settings = GivenSettings(bridge_port=ports[0], **livekit)
    bridge = ManagedProcess(
        "guarded-bridge",
        [sys.executable, "-m", "sip.bridge"],
        log_path=folder / "bridge.log",
        env=inherited_environment() | {"PYTHONPATH": str(ROOT)} | as_variables(settings),
    )
    client = LiveKitAPI(url, key, secret.get_secret_value())
    try:
        await bridge.start()
        await bridge.wait_ready(lambda: listening(ports[0]), timeout_s=30)
        async with running(settings_in(folder, agent_name="guarded", **livekit)) as gateway:
            yield Guarded(gateway, client.sip, f"127.0.0.1:{ports[1]}")
    finally:
        await client.aclose()
        await bridge.kill()
        for port in ports:
            PORTS.give_back(port)


class TestGateway:
    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            "[::ffff:127.0.0.1]",
            "[2002:7f00:1::]",
            "0.0.0.0",
            "localhost",
            "0x7f000001",
            "127.0x1",
        ],
    )
    async def test_nothing_arrives(self, guarded: Guarded, ear: Ear, host: str) -> None:
        answer = await guarded.call(f"{host}:{ear.port}")
        assert answer[0] == 403
        # A port that nobody listens on gets the same answer.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            assert await guarded.call(f"{host}:{free.getsockname()[1]}") == answer
        assert ear.heard == []

    async def test_nor_at_our_own_where_private_addresses_are_allowed(
        self, stack: Stack, gateway: Gateway
    ) -> None:
        assert stack.settings.sip_allow_private
        port = stack.sip_address.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f000001"):
            body = {
                "room_name": new_id("room"),
                "participant_name": "P",
                "participant_identity": "p",
                "from_phone_number": "+14155550100",
                "to_phone_number": "+14155550199",
                "agent": None,
                "sip": {"outbound_address": f"{host}:{port}"},
            }
            answer = await gateway.post("/sip/call", json=body)
            assert (answer.status, answer.code) == (403, "DESTINATION_NOT_ALLOWED")


class TestBridge:
    @pytest.mark.parametrize("transport", ["udp", "tcp"])
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
    async def test_a_tenants_dial_is_checked_again(
        self, guarded: Guarded, ear: Ear, host: str, transport: str
    ) -> None:
        trunk = pb.SIPOutboundConfig(
            hostname=f"{host}:{ear.port}",
            transport=f"SIP_TRANSPORT_{transport.upper()}",
        )
        request = dial_request(
            new_id("room"),
            "",
            trunk=trunk,
            participant_attributes={TENANT_DIAL: "true"},
            wait_until_answered=True,
        )
        with pytest.raises(api.TwirpError) as refused:
            await guarded.sip.create_sip_participant(request)
        assert refused.value.code == "permission_denied"
        assert ear.heard == []

    async def test_what_it_says_ends_the_call(self, guarded: Guarded, ear: Ear) -> None:
        """The gateway lets the address pass, as if its name had resolved to another one then."""
        app = guarded.gateway.app
        fooled = SipGuard(allow_private=True)
        real, outbound = app[SIP_GUARD], call_services(app).outbound
        outbound._guard = fooled
        try:
            status, told = await guarded.call(f"localhost:{ear.port}")
        finally:
            outbound._guard = real
        assert status == 200, told
        call_id = told["call_id"]
        async with (
            asyncio.timeout(WAIT),
            guarded.gateway.http.get(f"/v1/calls/{call_id}/events", headers=ACME) as events,
        ):
            assert "dial_failed" in await events.text()
        assert ear.heard == []

    async def test_the_operators_dial_goes_there(self, guarded: Guarded, ear: Ear) -> None:
        ear.on_request = lambda text, source: ear.send(reply(text, "486 Busy Here"), source)
        with pytest.raises(api.TwirpError):
            await guarded.sip.create_sip_participant(
                dial_request(new_id("room"), ear.address, wait_until_answered=True)
            )
        assert (await ear.until("INVITE")).startswith("INVITE sip:")

    async def test_the_stack_goes_to_the_address_that_was_checked(
        self, gateway: Gateway, ear: Ear
    ) -> None:
        ear.on_request = lambda text, source: ear.send(reply(text, "486 Busy Here"), source)
        body = {
            "room_name": new_id("room"),
            "participant_name": "P",
            "participant_identity": "p",
            "from_phone_number": "+14155550100",
            "to_phone_number": "+14155550199",
            "agent": None,
            "sip": {"outbound_address": f"localhost:{ear.port}"},
        }
        answer = await gateway.post("/sip/call", json=body)
        assert answer.status == 200, answer.body
        line = (await ear.until("INVITE")).split("\r\n")[0]
        uri = f"sip:+14155550199@localhost:{ear.port};transport=udp;maddr=127.0.0.1"
        assert line == f"INVITE {uri} SIP/2.0"


class TestFarEnd:
    """A far end that was allowed and then sends the call elsewhere."""

    @pytest.mark.parametrize("status", ["300 Choices", "301 Moved", "302 Moved", "305 Use Proxy"])
    async def test_a_redirection_is_not_followed(
        self, guarded: Guarded, far: Ear, ear: Ear, status: str
    ) -> None:
        contact = f"Contact: <sip:x@{ear.address}>"
        far.on_request = lambda text, source: far.send(reply(text, status, contact), source)
        with pytest.raises(api.TwirpError):
            await guarded.sip.create_sip_participant(
                dial_request(new_id("room"), far.address, wait_until_answered=True)
            )
        await far.until("ACK")
        assert ear.heard == []

    @pytest.mark.parametrize("port_of", ["ear", "gateway"])
    async def test_a_referral_is_not_followed(
        self, guarded: Guarded, ear: Ear, port_of: str
    ) -> None:
        async with Phone() as phone:
            room = new_id("room")
            await guarded.sip.create_sip_participant(
                dial_request(room, phone.address, wait_until_answered=True)
            )
            call = await phone.next_call(WAIT)
            await call.answered(WAIT)
            target = ear.address if port_of == "ear" else guarded.sip_address
            with pytest.raises(Exception, match="(?i)decline|603|refused|failed"):
                await call.transfer(f"sip:x@{target}")
            await call.hangup()
        assert ear.heard == []


class TestFrom:
    """A caller's From never counts as its source address (LiveKit's allowed_addresses)."""

    @pytest.mark.parametrize(
        ("mask", "host", "status"),
        [
            ("198.51.100.0/24", "198.51.100.0/24", "486"),
            ("198.51.100.7", "198.51.100.7", "486"),
            ("trusted.example", "trusted.example", "486"),
            ("127.0.0.0/8", "198.51.100.7", "487"),
        ],
    )
    async def test_only_the_source_address_counts(
        self,
        guarded: Guarded,
        livekit: LiveKitAPI,
        ear: Ear,
        mask: str,
        host: str,
        status: str,
    ) -> None:
        room = new_id("room")
        called = f"+1415{ear.port:07}"
        trunk = await guarded.sip.create_inbound_trunk(
            pb.CreateSIPInboundTrunkRequest(
                trunk=pb.SIPInboundTrunkInfo(name="t", numbers=[called], allowed_addresses=[mask])
            )
        )
        rule = await guarded.sip.create_dispatch_rule(
            pb.CreateSIPDispatchRuleRequest(
                dispatch_rule=pb.SIPDispatchRuleInfo(
                    rule=pb.SIPDispatchRule(
                        dispatch_rule_direct=pb.SIPDispatchRuleDirect(room_name=room)
                    ),
                    trunk_ids=[trunk.sip_trunk_id],
                )
            )
        )
        try:
            name, _, port = guarded.sip_address.partition(":")
            ear.send(invite(called, host, guarded.sip_address, ear.port), (name, int(port)))
            # The stack sends 180 to every caller; one that is let in goes on ringing in its room.
            if status == "487":
                await in_room(livekit, room)
                ear.send(cancel(called, host, guarded.sip_address, ear.port), (name, int(port)))
            await ear.until(f"SIP/2.0 {status}")
        finally:
            await guarded.sip.delete_dispatch_rule(
                pb.DeleteSIPDispatchRuleRequest(sip_dispatch_rule_id=rule.sip_dispatch_rule_id)
            )
            await guarded.sip.delete_trunk(
                pb.DeleteSIPTrunkRequest(sip_trunk_id=trunk.sip_trunk_id)
            )


async def in_room(livekit: LiveKitAPI, room: str) -> None:
    """Wait until the caller is in the room."""
    async with asyncio.timeout(WAIT):
        while True:
            asked = api.ListParticipantsRequest(room=room)
            with contextlib.suppress(api.TwirpError):
                if (await livekit.room.list_participants(asked)).participants:
                    return
            await asyncio.sleep(0.05)


def invite(called: str, host: str, to: str, port: int) -> str:
    sdp = ANSWER_SDP.format(port=port)
    return "\r\n".join(
        [
            *_head("INVITE", called, host, to, port),
            f"Contact: <sip:x@127.0.0.1:{port}>",
            "Content-Type: application/sdp",
            f"Content-Length: {len(sdp)}",
            "",
            sdp,
        ]
    )


def cancel(called: str, host: str, to: str, port: int) -> str:
    return "\r\n".join([*_head("CANCEL", called, host, to, port), "Content-Length: 0", "", ""])


def _head(method: str, called: str, host: str, to: str, port: int) -> list[str]:
    return [
        f"{method} sip:{called}@{to} SIP/2.0",
        f"Via: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bK{port}x;rport",
        f"From: <sip:x@{host}>;tag=from{port}",
        f"To: <sip:{called}@{to}>",
        f"Call-ID: forged-{port}",
        f"CSeq: 1 {method}",
        "Max-Forwards: 70",
    ]
