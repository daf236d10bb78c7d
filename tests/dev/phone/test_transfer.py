"""Phones that are transferred (REFER)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from baresip import TransferFailed

from dev.phone import Phone, Reject
from tests.support.phones import WAIT, alice, bob, connect, noise

pytestmark = pytest.mark.sip

__all__ = ["alice", "bob"]


class TestTransfer:
    @pytest.fixture
    async def carol(self) -> AsyncIterator[Phone]:
        async with Phone() as phone:
            yield phone

    async def test_a_phone_goes_where_a_refer_sends_it(
        self, alice: Phone, bob: Phone, carol: Phone
    ) -> None:
        outbound, inbound = await connect(alice, bob)
        target = f"sip:+15550111@{carol.address}"
        await asyncio.wait_for(inbound.transfer(target), WAIT)
        transfer = await outbound.next_transfer(WAIT)
        assert transfer.target == target
        replacement = await asyncio.wait_for(transfer.call, WAIT)
        await replacement.answered(WAIT)
        at_carol = await carol.next_call(WAIT)
        assert at_carol.called == "+15550111"
        assert (await outbound.ended(WAIT)).how == "transfer"
        _, heard = await asyncio.gather(
            replacement.play(noise(0.5, 1)), at_carol.listen(WAIT, end_silence_ms=300)
        )
        assert heard.end_ms - heard.start_ms == pytest.approx(500, abs=20)

    async def test_the_called_phone_follows_too(
        self, alice: Phone, bob: Phone, carol: Phone
    ) -> None:
        outbound, inbound = await connect(alice, bob)
        await asyncio.wait_for(outbound.transfer(f"sip:7@{carol.address}"), WAIT)
        assert (await carol.next_call(WAIT)).called == "7"
        assert (await inbound.ended(WAIT)).how == "transfer"

    async def test_a_telephone_number_goes_where_the_operator_routes_it(
        self, bob: Phone, carol: Phone
    ) -> None:
        async with Phone(transfer_route=carol.address) as alice:
            _, inbound = await connect(bob, alice)
            outbound = bob.calls[0]
            await asyncio.wait_for(outbound.transfer("tel:+15550122"), WAIT)
            assert (await carol.next_call(WAIT)).called == "+15550122"
            assert inbound.transfers[0].target == f"sip:+15550122@{carol.address}"

    async def test_a_refused_target_leaves_the_call_up(
        self, alice: Phone, bob: Phone, carol: Phone
    ) -> None:
        carol.behave(Reject(486))
        outbound, inbound = await connect(alice, bob)
        with pytest.raises(TransferFailed, match="486"):
            await asyncio.wait_for(inbound.transfer(f"sip:7@{carol.address}"), WAIT)
        assert outbound.ending is None and inbound.ending is None

    async def test_a_phone_may_decline(self, bob: Phone, carol: Phone) -> None:
        async with Phone(follow_transfers=False) as alice:
            _, inbound = await connect(alice, bob)
            with pytest.raises(TransferFailed, match="603"):
                await asyncio.wait_for(inbound.transfer(f"sip:7@{carol.address}"), WAIT)
        assert carol.invites == 0
