"""POST /sip/call: each call has its own trunk, none is left behind, and no phone rings in vain."""

from __future__ import annotations

import asyncio

import pytest
from livekit.api import LiveKitAPI
from livekit.protocol.sip import ListSIPOutboundTrunkRequest

from core.models import new_id
from dev.phone import Phone, Reject, RingOut
from dev.sip.digest import Credentials
from dev.stack import Stack
from dev.standins.trunk import Trunk
from sip.dial import Dial, DialRequest
from sip.dial import Trunk as CallTrunk
from tests.conftest import GLOBAL_USER, Gateway
from tests.support.sip_call_rig import body, ended, participants

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


def usernames(trunk: Trunk) -> set[str]:
    assert trunk.gate is not None
    return set(trunk.gate.usernames)


class TestTrunks:
    async def test_two_calls_from_one_number_go_to_their_own_hosts(
        self, gateway: Gateway, phone: Phone
    ) -> None:
        """Each host's digest challenge gets its own call's credentials only."""
        async with (
            Trunk(phone.address, Credentials("anna", "pw-of-anna")) as one,
            Trunk(phone.address, Credentials("bert", "pw-of-bert")) as two,
        ):
            overrides = [
                (one, {"auth_username": "anna", "auth_password": "pw-of-anna"}),
                (two, {"auth_username": "bert", "auth_password": "pw-of-bert"}),
            ]
            answers = await asyncio.gather(
                *(
                    gateway.post(
                        "/sip/call", json=body(sip={"outbound_address": trunk.address, **sip})
                    )
                    for trunk, sip in overrides
                )
            )
            assert [answer.status for answer in answers] == [200, 200]
            calls = [await phone.next_call(5), await phone.next_call(5)]
            for call in calls:
                await call.answered(5)
            assert usernames(one) == {"anna"}
            assert usernames(two) == {"bert"}
            for call in calls:
                await call.hangup()
            for answer in answers:
                record = await ended(gateway, answer.body["call_id"])
                assert record["status"] == "completed"

    async def test_global_credentials_stay_at_home(self, gateway: Gateway, phone: Phone) -> None:
        async with Trunk(phone.address, Credentials("anna", "pw-of-anna")) as trunk:
            answer = await gateway.post(
                "/sip/call", json=body(sip={"outbound_address": trunk.address})
            )
            assert answer.status == 200
            record = await ended(gateway, answer.body["call_id"])
            assert record["status"] == "failed"
            assert GLOBAL_USER not in usernames(trunk)
            assert phone.invites == 0

    async def test_no_trunk_is_left_after_100_calls(
        self, gateway: Gateway, stack: Stack, phone: Phone
    ) -> None:
        phone.behave(Reject(486))
        for _ in range(10):
            answers = await asyncio.gather(
                *(
                    gateway.post("/sip/call", json=body(sip={"outbound_address": phone.address}))
                    for _ in range(10)
                )
            )
            assert {answer.status for answer in answers} == {200}
            for answer in answers:
                record = await ended(gateway, answer.body["call_id"])
                assert (record["status"], record["sipStatusCode"]) == ("busy", 486)
        sip = stack.sip_api()
        trunks = await sip.sip.list_outbound_trunk(ListSIPOutboundTrunkRequest())
        await sip.aclose()
        assert list(trunks.items) == []


async def test_a_far_end_quicker_than_our_lookup(stack: Stack, phone: Phone) -> None:
    """If a refusal removes the participant before the lookup, the bridge's error has its ids."""
    phone.behave(Reject(486))
    request = DialRequest(
        trunk=CallTrunk(address=phone.address),
        from_number="+15105550123",
        to_number="+15551230000",
        room_name=new_id("room"),
        participant_identity="caller-456",
        participant_name="John Doe",
    )
    async with stack.sip_api() as sip, LiveKitAPI("http://127.0.0.1:9", "key", "s" * 32) as nobody:
        dial = Dial(sip, nobody, request)
        ids = await dial.joined()
        outcome = await dial.verdict()
    assert ids.participant_id.startswith("PA_")
    assert ids.sip_call_id.startswith("SCL_")
    assert (outcome.status, outcome.sip_status_code) == ("busy", 486)


async def test_a_request_that_breaks_off_rings_no_longer(stack: Stack, phone: Phone) -> None:
    """If the request's connection is lost, the ringing stops: nobody would talk to the callee."""
    host, port = stack.bridge_url.removeprefix("http://").split(":")
    relays: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.append(writer)
        _, onwards = await asyncio.open_connection(host, int(port))
        while data := await reader.read(65_536):
            onwards.write(data)
        onwards.close()

    phone.behave(RingOut())
    room = new_id("room")
    request = DialRequest(
        trunk=CallTrunk(address=phone.address),
        from_number="+15105550123",
        to_number="+15551230000",
        room_name=room,
        participant_identity="caller-456",
        participant_name="John Doe",
    )
    settings = stack.settings
    assert settings.livekit_api_secret is not None
    keys = settings.livekit_api_key, settings.livekit_api_secret.get_secret_value()
    async with (
        await asyncio.start_server(relay, "127.0.0.1", 0) as proxy,
        LiveKitAPI(
            f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}", *keys, failover=False
        ) as sip,
        stack.api() as livekit,
    ):
        dial = Dial(sip, livekit, request)
        await dial.joined()
        call = await phone.next_call(5)
        for writer in relays:
            writer.transport.abort()
        assert (await dial.verdict()).reason == "dial_failed"
        await call.ended(10)
        assert await participants(livekit, room) == []
