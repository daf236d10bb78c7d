"""Phones that call each other over loopback: each behaviour, each ending."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time

import pytest

from dev.phone import (
    Answer,
    Behaviour,
    CallEnded,
    CallRefused,
    Ended,
    Phone,
    PhoneCall,
    Reject,
    RingOut,
)
from dev.speech import listen
from tests.support.phones import (
    CALLED,
    CALLER,
    WAIT,
    alice,
    all_arrived,
    bob,
    connect,
    first_sound,
    is_same_audio,
    noise,
    ring,
    settled,
)

pytestmark = pytest.mark.sip

__all__ = ["alice", "bob"]


class TestBeingCalled:
    async def test_any_number_is_this_phone(self, alice: Phone, bob: Phone) -> None:
        outbound = await alice.dial(
            f"sip:+4915550199@{bob.address}", caller=CALLER, headers={"X-Order": "a 17"}
        )
        call = await bob.next_call(WAIT)
        assert (call.called, call.caller, call.inbound) == ("+4915550199", CALLER, True)
        assert call.headers["x-order"] == "a 17"
        await outbound.answered(WAIT)
        await call.answered(WAIT)
        assert outbound.call_id == call.call_id
        assert (bob.invites, alice.invites) == (1, 0)

    async def test_it_rings_before_it_answers(self, alice: Phone, bob: Phone) -> None:
        bob.behave(Answer(after_s=0.3))
        began = time.monotonic()
        outbound, _ = await ring(alice, bob)
        await outbound.ringing(WAIT)
        await outbound.answered(WAIT)
        assert time.monotonic() - began >= 0.3

    async def test_nothing_is_heard_while_it_rings(self, alice: Phone, bob: Phone) -> None:
        bob.behave(RingOut())
        outbound, inbound = await ring(alice, bob)
        await outbound.ringing(WAIT)
        with pytest.raises(CallEnded, match="not up"):
            await outbound.listen(WAIT)
        await inbound.answer()
        await outbound.answered(WAIT)

    @pytest.mark.parametrize(
        ("behaviour", "reason"),
        [
            (Reject(486), "Busy Here"),
            (Reject(603), "Decline"),
            (Reject(503), "Service Unavailable"),
            (Reject(480, reason="Gone fishing"), "Gone fishing"),
            (Reject(404, after_s=0.1), "Not Found"),
        ],
    )
    async def test_a_refusal_reaches_the_caller(
        self, alice: Phone, bob: Phone, behaviour: Reject, reason: str
    ) -> None:
        bob.behave(behaviour)
        outbound, inbound = await ring(alice, bob)
        with pytest.raises(CallRefused) as refused:
            await outbound.answered(WAIT)
        assert (refused.value.status, refused.value.reason) == (behaviour.status, reason)
        assert outbound.ending == Ended("remote", "refused", behaviour.status, reason)
        assert await inbound.ended(WAIT) == Ended("local", "refused", behaviour.status, reason)
        with pytest.raises(CallEnded):
            await inbound.answered(WAIT)

    async def test_each_number_can_behave_its_own_way(self, alice: Phone, bob: Phone) -> None:
        def choose(call: PhoneCall) -> Behaviour:
            return Answer() if call.called == CALLED else Reject(600)

        bob.behave(choose)
        refused, _ = await ring(alice, bob, called="+15550101")
        answered, _ = await ring(alice, bob)
        await answered.answered(WAIT)
        with pytest.raises(CallRefused, match="600 Busy Everywhere"):
            await refused.answered(WAIT)

    async def test_ringing_out_until_the_caller_gives_up(self, alice: Phone, bob: Phone) -> None:
        bob.behave(RingOut())
        outbound, inbound = await ring(alice, bob)
        await outbound.ringing(WAIT)
        with pytest.raises(TimeoutError):
            await outbound.answered(timeout=0.1)
        await outbound.hangup()
        assert (await outbound.ended(WAIT)).how == "cancel"
        ending = await inbound.ended(WAIT)
        assert (ending.by, ending.how) == ("remote", "cancel")
        await outbound.hangup()

    async def test_a_caller_can_give_up_before_a_late_refusal(
        self, alice: Phone, bob: Phone
    ) -> None:
        bob.behave(Reject(486, after_s=60))
        outbound, inbound = await ring(alice, bob)
        await outbound.ringing(WAIT)
        await outbound.hangup()
        ending = await inbound.ended(WAIT)
        assert (ending.by, ending.how) == ("remote", "cancel")
        assert (await outbound.ended(WAIT)).by == "local"

    async def test_a_ringing_phone_can_be_answered_or_refused_by_hand(
        self, alice: Phone, bob: Phone
    ) -> None:
        bob.behave(RingOut())
        outbound, inbound = await ring(alice, bob)
        await inbound.answer()
        await outbound.answered(WAIT)
        outbound, inbound = await ring(alice, bob)
        await inbound.hangup()
        with pytest.raises(CallRefused, match="486"):
            await outbound.answered(WAIT)
        assert await inbound.ended(WAIT) == Ended("local", "refused", 486, "Busy Here")

    async def test_nobody_calls(self, bob: Phone) -> None:
        with pytest.raises(TimeoutError):
            await bob.next_call(timeout=0.05)
        assert bob.invites == 0


class TestEnding:
    @pytest.mark.parametrize("called_side_ends", [True, False])
    async def test_both_sides_know_who_hung_up(
        self, alice: Phone, bob: Phone, called_side_ends: bool
    ) -> None:
        outbound, inbound = await connect(alice, bob)
        ender, other = (inbound, outbound) if called_side_ends else (outbound, inbound)
        await ender.hangup()
        assert await ender.ended(WAIT) == Ended("local", "bye", None, "")
        assert await other.ended(WAIT) == Ended("remote", "bye", None, "")
        with pytest.raises(CallEnded):
            await other.play(noise(0.1, 1))

    async def test_what_waits_on_a_call_learns_of_its_end(self, alice: Phone, bob: Phone) -> None:
        outbound, inbound = await connect(alice, bob)
        listening = asyncio.create_task(inbound.listen(WAIT))
        playing = asyncio.create_task(inbound.play(noise(30, 1)))
        await first_sound(outbound)
        await outbound.hangup()
        with pytest.raises(CallEnded):
            await asyncio.wait_for(playing, WAIT)
        with pytest.raises(CallEnded):
            await asyncio.wait_for(listening, WAIT)

    async def test_an_address_where_nobody_is(self, alice: Phone) -> None:
        outbound = await alice.dial(f"sip:{CALLED}@127.0.0.1:9", caller=CALLER)
        with pytest.raises(TimeoutError):
            await outbound.answered(timeout=0.2)
        await outbound.hangup()
        assert (await outbound.ended(WAIT)).by == "local"

    async def test_a_name_is_not_resolved(self, alice: Phone) -> None:
        outbound = await alice.dial(f"sip:{CALLED}@sip.invalid", caller=CALLER)
        with pytest.raises(CallRefused, match="502"):
            await outbound.answered(WAIT)

    async def test_a_phone_cannot_call_itself(self, alice: Phone) -> None:
        with pytest.raises(ValueError, match="itself"):
            await alice.dial(f"sip:{CALLED}@{alice.address}")


class TestDtmf:
    async def test_digits_arrive_in_order_both_ways(self, alice: Phone, bob: Phone) -> None:
        outbound, inbound = await connect(alice, bob)

        async def receive(call: PhoneCall, count: int) -> str:
            return "".join([(await call.next_digit(WAIT)).digit for _ in range(count)])

        _, _, at_bob, at_alice = await asyncio.gather(
            outbound.dtmf("147*"), inbound.dtmf("#0"), receive(inbound, 4), receive(outbound, 2)
        )
        assert (at_bob, at_alice) == ("147*", "#0")
        with pytest.raises(TimeoutError):
            await inbound.next_digit(timeout=0.05)


class TestManyAndNone:
    async def test_ten_calls_at_once_do_not_mix(self, alice: Phone, bob: Phone) -> None:
        async def talk(number: int) -> None:
            outbound = await alice.dial(f"sip:{number}@{bob.address}", caller=f"+1555{number}")
            await outbound.answered(WAIT)
            inbound = next(c for c in bob.calls if c.called == str(number))
            await inbound.answered(WAIT)
            await settled(outbound, inbound)
            question, answer = noise(1, number), noise(1, 100 + number)
            await asyncio.gather(outbound.play(question), inbound.play(answer))
            await asyncio.gather(all_arrived(outbound, inbound), all_arrived(inbound, outbound))
            for signal, call in ((question, inbound), (answer, outbound)):
                received = call.media.received.view()
                place = listen.find(signal, received).offset
                assert is_same_audio(received[place:][: len(signal)], signal)
            assert outbound.media.starved_frames == inbound.media.starved_frames == 0
            await outbound.hangup()
            await inbound.ended(WAIT)

        await asyncio.gather(*(talk(number) for number in range(10)))
        assert bob.invites == 10

    async def test_nothing_is_left_behind(self) -> None:
        async def use() -> None:
            async with Phone() as alice, Phone() as bob:
                bob.behave(lambda call: RingOut() if call.called == "1" else Answer(after_s=30))
                await ring(alice, bob, called="1")
                await ring(alice, bob, called="2")
                bob.behave(Reject(486, after_s=30))
                await ring(alice, bob, called="3")
                bob.behave(Answer())
                outbound, _ = await connect(alice, bob)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(outbound.play(noise(5, 1)), 0.1)

        await use()  # creates whatever is made once and kept
        before = _sockets(), _threads(), len(asyncio.all_tasks())
        await use()
        assert (_sockets(), _threads(), len(asyncio.all_tasks())) == before

    async def test_a_port_in_use_is_an_error_and_leaves_nothing(self, alice: Phone) -> None:
        port = int(alice.address.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            await Phone(port=port).__aenter__()
        async with Phone() as other:
            await connect(alice, other)


def _sockets() -> int:
    links = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
            links.append(os.readlink(f"/proc/self/fd/{entry}"))
    return sum(link.startswith("socket:") for link in links)


def _threads() -> set[str]:
    return {t.name for t in threading.enumerate() if not t.name.startswith("asyncio_")}
