"""A recording against what a phone sent and received: SIP, the bridge, a room, the worker."""

from __future__ import annotations

import pytest

from dev import scenario
from dev.caller import converse
from dev.phone import Phone
from dev.stack import Stack
from tests.conftest import Gateway
from tests.support.alignment import aligned, channels
from tests.support.calls import Placed, request, told

# What the SIP service and the phone hold in packet buffers is in no statistic of the delay, and
# changes during a call: measured, the channels are up to 150 ms from each other.
OFF_MS, DRIFT_MS = 120.0, 120.0

pytestmark = [
    pytest.mark.stack,
    pytest.mark.alone,
    pytest.mark.asyncio(loop_scope="session"),
]


async def test_both_channels_are_where_the_phone_has_them(
    gateway: Gateway, phone: Phone, stack: Stack
) -> None:
    body = request(phone.address, agent="recorded", record=True)
    placed = await Placed.place(gateway, body)
    call = await phone.next_call(10)
    await call.answered(10)
    await call.listen(30)
    async for _ in converse(call, scenario.STEPS):
        pass
    await call.ended(20)
    await told(gateway, placed.call_id, "recording.stored")
    phones = call.recording
    recorded = channels(stack.settings.data_dir, placed.call_id)
    aligned(recorded, phones.sent, phones.received, off_ms=OFF_MS, drift_ms=DRIFT_MS)
