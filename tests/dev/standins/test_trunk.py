"""dev.standins.trunk between two phones: authentication, relaying, counts and refusals."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from dev.phone import CallRefused, Phone, PhoneCall, Reject, RingOut
from dev.sip.digest import digest_response
from dev.standins.trunk import Blackhole, Credentials, FixedReply, Trunk
from tests.support.phones import CALLED, CALLER, WAIT, alice, bob

pytestmark = pytest.mark.sip

__all__ = ["alice", "bob"]

GOOD = Credentials("alice", "correct horse")


async def dial(
    phone: Phone, trunk: Trunk, user: str | None = None, password: str = ""
) -> PhoneCall:
    return await phone.dial(
        f"sip:{CALLED}@{trunk.address}",
        caller=CALLER,
        auth_user=user,
        auth_password=password,
    )


async def refusal(call: PhoneCall) -> int | None:
    with pytest.raises(CallRefused) as refused:
        await call.answered(WAIT)
    return refused.value.status


class TestDigest:
    # The examples of RFC 2617 §3.5 and RFC 7616 §3.9.1.
    RFC2617 = {
        "realm": "testrealm@host.com",
        "nonce": "dcd98b7102dd2f0e8b11d0f600bfb0c093",
        "uri": "/dir/index.html",
        "qop": "auth",
        "nc": "00000001",
        "cnonce": "0a4f113b",
    }
    RFC7616 = {
        "realm": "http-auth@example.org",
        "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
        "uri": "/dir/index.html",
        "qop": "auth",
        "nc": "00000001",
        "cnonce": "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
    }

    def test_the_examples_of_the_rfcs(self) -> None:
        answer = digest_response(Credentials("Mufasa", "Circle Of Life"), "GET", self.RFC2617)
        assert answer == "6629fae49393a05397450978507c4ef1"
        answer = digest_response(Credentials("Mufasa", "Circle of Life"), "GET", self.RFC7616)
        assert answer == "8ca523f5e9506fed4657c9700eebdbec"

    def test_without_qop_only_the_nonce_counts(self) -> None:
        plain = {k: self.RFC2617[k] for k in ("realm", "nonce", "uri")}
        credentials = Credentials("Mufasa", "Circle Of Life")
        assert digest_response(credentials, "GET", plain) == "670fd8c2df070c60b045671b8b24ff02"

    @pytest.mark.parametrize("status", [407, 401])
    @pytest.mark.parametrize("qop", [True, False])
    async def test_the_right_password_gets_through(
        self, alice: Phone, bob: Phone, status: int, qop: bool
    ) -> None:
        async with Trunk(bob.address, GOOD, challenge_status=status, qop=qop) as trunk:
            outbound = await dial(alice, trunk, GOOD.username, GOOD.password)
            await outbound.answered(WAIT)
            inbound = await bob.next_call(WAIT)
            await inbound.answered(WAIT)
            gate = trunk.gate
            assert gate is not None
            assert (gate.challenges, gate.right_answers, gate.wrong_answers) == (1, 1, 0)
            assert gate.usernames == {GOOD.username}
            assert (trunk.invites, trunk.seen.called) == (1, [CALLED])
            assert trunk.seen.callers == ["+15105550123"]
            assert "proxy-authorization" not in inbound.headers

            await inbound.hangup()
            assert (await outbound.ended(WAIT)).how == "bye"
            assert trunk.seen.methods["BYE"] >= 1

    @pytest.mark.parametrize(
        ("user", "password"), [(GOOD.username, "battery staple"), ("mallory", GOOD.password)]
    )
    async def test_a_wrong_answer_does_not(
        self, alice: Phone, bob: Phone, user: str, password: str
    ) -> None:
        async with Trunk(bob.address, GOOD) as trunk:
            assert await refusal(await dial(alice, trunk, user, password)) in {403, 407}
            assert trunk.gate is not None
            assert trunk.gate.right_answers == 0
            assert trunk.gate.wrong_answers >= 1
            assert trunk.gate.usernames == {user}
            assert (trunk.invites, bob.invites) == (1, 0)

    async def test_after_enough_wrong_answers_it_is_forbidden(
        self, alice: Phone, bob: Phone
    ) -> None:
        async with Trunk(bob.address, GOOD, wrong_answers_allowed=0) as trunk:
            assert await refusal(await dial(alice, trunk, GOOD.username, "no")) == 403
            assert trunk.gate is not None and trunk.gate.wrong_answers == 1

    async def test_without_credentials_nobody_is_called(self, alice: Phone, bob: Phone) -> None:
        async with Trunk(bob.address, GOOD) as trunk:
            assert await refusal(await dial(alice, trunk)) in {403, 407}
            assert trunk.gate is not None and trunk.gate.right_answers == 0
            assert bob.invites == 0

    async def test_two_trunks_know_their_own_users_only(self, alice: Phone, bob: Phone) -> None:
        other = Credentials("bert", "another one")
        async with Trunk(bob.address, GOOD) as first, Trunk(bob.address, other) as second:
            calls = [
                await dial(alice, first, GOOD.username, GOOD.password),
                await dial(alice, second, other.username, other.password),
            ]
            await asyncio.gather(*(call.answered(WAIT) for call in calls))
            assert first.gate is not None and second.gate is not None
            assert (first.gate.usernames, second.gate.usernames) == ({"alice"}, {"bert"})
            assert await refusal(await dial(alice, second, GOOD.username, GOOD.password)) in {
                403,
                407,
            }

    def test_credentials_do_not_show_their_password(self) -> None:
        assert "correct horse" not in repr(GOOD)


class TestRelay:
    async def test_a_whole_call_passes(self, alice: Phone, bob: Phone) -> None:
        async with Trunk(bob.address) as trunk:
            outbound = await dial(alice, trunk)
            await outbound.answered(WAIT)
            inbound = await bob.next_call(WAIT)
            await inbound.answered(WAIT)
            sound = np.random.default_rng(1).normal(0, 3000, 4000).astype(np.int16)
            _, heard = await asyncio.gather(
                outbound.play(sound), inbound.listen(WAIT, end_silence_ms=200)
            )
            assert heard.end_ms - heard.start_ms == pytest.approx(500, abs=20)
            await outbound.dtmf("5")
            assert (await inbound.next_digit(WAIT)).digit == "5"
            await outbound.hangup()
            assert (await inbound.ended(WAIT)).how == "bye"
            assert trunk.seen.methods["ACK"] >= 1

    async def test_a_cancel_passes(self, alice: Phone, bob: Phone) -> None:
        bob.behave(RingOut())
        async with Trunk(bob.address) as trunk:
            outbound = await dial(alice, trunk)
            inbound = await bob.next_call(WAIT)
            await outbound.ringing(WAIT)
            await outbound.hangup()
            ending = await inbound.ended(WAIT)
            assert (ending.by, ending.how) == ("remote", "cancel")
            assert trunk.seen.methods["CANCEL"] >= 1

    async def test_a_refusal_of_the_phone_passes(self, alice: Phone, bob: Phone) -> None:
        bob.behave(Reject(486))
        async with Trunk(bob.address, GOOD) as trunk:
            assert await refusal(await dial(alice, trunk, GOOD.username, GOOD.password)) == 486

    async def test_a_transfer_passes(self, alice: Phone, bob: Phone) -> None:
        async with Trunk(bob.address) as trunk, Phone() as carol:
            outbound = await dial(alice, trunk)
            await outbound.answered(WAIT)
            inbound = await bob.next_call(WAIT)
            await inbound.answered(WAIT)
            await asyncio.wait_for(outbound.transfer(f"sip:9@{carol.address}"), WAIT)
            assert (await carol.next_call(WAIT)).called == "9"
            assert trunk.seen.methods["REFER"] >= 1


class TestModes:
    @pytest.mark.parametrize("status", [503, 404, 480, 600])
    async def test_a_fixed_reply_refuses_every_call(self, alice: Phone, status: int) -> None:
        async with Trunk(mode=FixedReply(status)) as trunk:
            assert await refusal(await dial(alice, trunk)) == status
            assert await refusal(await dial(alice, trunk)) == status
            assert trunk.invites == 2

    async def test_a_blackhole_says_nothing(self, alice: Phone, bob: Phone) -> None:
        async with Trunk(bob.address, mode=Blackhole()) as trunk:
            outbound = await dial(alice, trunk)
            with pytest.raises(TimeoutError):
                await outbound.answered(timeout=0.7)
            await outbound.hangup()
            await outbound.ended(WAIT)
            # The INVITE is sent again after half a second without an answer, but it is one call.
            assert trunk.seen.methods["INVITE"] >= 2
            assert (trunk.invites, bob.invites) == (1, 0)

    def test_a_trunk_that_leads_nowhere_is_a_mistake(self) -> None:
        with pytest.raises(ValueError, match="target"):
            Trunk()
        with pytest.raises(ValueError, match="401 or a 407"):
            Trunk("127.0.0.1:1", GOOD, challenge_status=403)


class Wire(asyncio.DatagramProtocol):
    """A bare socket, for messages that a well-behaved phone never sends."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        self.received.put_nowait(data)


@pytest.fixture
async def wire() -> AsyncIterator[tuple[asyncio.DatagramTransport, Wire]]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Wire, local_addr=("127.0.0.1", 0))
    yield transport, protocol
    transport.close()


def message(method: str, host: str, *, branch: str = "z9hG4bKw1", more: str = "") -> bytes:
    return (
        f"{method} sip:{CALLED}@{host} SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP 127.0.0.1:1;branch={branch};rport\r\n"
        f"From: <sip:me@127.0.0.1>;tag=w\r\nTo: <sip:{CALLED}@{host}>\r\n"
        f"Call-ID: wire-call\r\nCSeq: 1 {method}\r\n{more}Content-Length: 0\r\n\r\n"
    ).encode()


class TestOnTheWire:
    async def exchange(
        self, wire: tuple[asyncio.DatagramTransport, Wire], data: bytes, target: str
    ) -> bytes:
        host, _, port = target.rpartition(":")
        wire[0].sendto(data, (host, int(port)))
        return await asyncio.wait_for(wire[1].received.get(), WAIT)

    async def test_a_retransmission_gets_the_same_challenge_and_counts_once(
        self, wire: tuple[asyncio.DatagramTransport, Wire], bob: Phone
    ) -> None:
        async with Trunk(bob.address, GOOD) as trunk:
            data = message("INVITE", trunk.address)
            first = await self.exchange(wire, data, trunk.address)
            assert first.startswith(b"SIP/2.0 407 ")
            assert b'Proxy-Authenticate: Digest realm="trunk.test"' in first
            assert await self.exchange(wire, data, trunk.address) == first
            assert trunk.gate is not None and trunk.gate.challenges == 1
            assert trunk.invites == 1

    async def test_an_old_nonce_is_stale(
        self, wire: tuple[asyncio.DatagramTransport, Wire], bob: Phone
    ) -> None:
        async with Trunk(bob.address, GOOD) as trunk:
            params = {"realm": "trunk.test", "nonce": "made-up", "uri": "sip:x"}
            answer = digest_response(GOOD, "INVITE", params)
            header = (
                f'Proxy-Authorization: Digest username="{GOOD.username}", realm="trunk.test", '
                f'nonce="made-up", uri="sip:x", response="{answer}"\r\n'
            )
            data = message("INVITE", trunk.address, more=header)
            reply = await self.exchange(wire, data, trunk.address)
            assert reply.startswith(b"SIP/2.0 407 ") and b"stale=true" in reply
            assert bob.invites == 0

    async def test_options_is_answered(
        self, wire: tuple[asyncio.DatagramTransport, Wire], bob: Phone
    ) -> None:
        async with Trunk(bob.address, GOOD) as trunk:
            for address in (trunk.address, bob.address):
                reply = await self.exchange(wire, message("OPTIONS", address), address)
                assert reply.startswith(b"SIP/2.0 200 OK")

    async def test_a_request_that_has_gone_round_too_often_stops(
        self, wire: tuple[asyncio.DatagramTransport, Wire], bob: Phone
    ) -> None:
        async with Trunk(bob.address) as trunk:
            data = message("INVITE", trunk.address, more="Max-Forwards: 0\r\n")
            reply = await self.exchange(wire, data, trunk.address)
            assert reply.startswith(b"SIP/2.0 483 Too Many Hops")

    async def test_rubbish_is_counted_and_nothing_breaks(
        self, wire: tuple[asyncio.DatagramTransport, Wire], bob: Phone
    ) -> None:
        async with Trunk(bob.address) as trunk:
            host, _, port = trunk.address.rpartition(":")
            for rubbish in (
                b"\r\n\r\n",
                b"\x00\xff" * 50,
                b"INVITE\r\n",
                b"SIP/2.0 200 OK\r\n\r\n",
            ):
                wire[0].sendto(rubbish, (host, int(port)))
            reply = await self.exchange(wire, message("OPTIONS", trunk.address), trunk.address)
            assert reply.startswith(b"SIP/2.0 200 OK")
            assert trunk.malformed == 3  # the first was a keep-alive
