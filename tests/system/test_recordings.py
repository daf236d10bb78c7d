"""A recording against the packets that a phone sent and received: SIP, the bridge, a room."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dev import scenario
from dev.caller import converse
from dev.phone import Phone
from dev.phone.wire import wire
from dev.stack import Stack
from tests.conftest import Gateway
from tests.support.alignment import aligned, channels
from tests.support.calls import Placed, request, told


def sees_packets() -> bool:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except PermissionError:
        return False
    return True


pytestmark = [
    pytest.mark.stack,
    pytest.mark.alone,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(
        not sees_packets(), reason="CAP_NET_RAW is missing, which shows the loopback's packets"
    ),
]


async def test_both_channels_are_where_the_wire_had_them(
    gateway: Gateway, phone: Phone, stack: Stack
) -> None:
    body = request(phone.address, agent="recorded", record=True)
    async with wire() as packets:
        placed = await Placed.place(gateway, body)
        call = await phone.next_call(10)
        await call.answered(10)
        await call.listen(30)
        async for _ in converse(call, scenario.STEPS):
            pass
        await call.ended(20)
    await told(gateway, placed.call_id, "recording.stored")
    said, heard = packets.call(call.audio_port)
    store = Path(urlsplit(stack.settings.recordings_url or "").path)
    aligned(channels(store, placed.call_id), said, heard)
