"""A recording against the packets that a phone sent and received: SIP, the bridge, a room."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from core.audio import Pcm
from dev import scenario
from dev.caller import converse
from dev.phone import Phone
from dev.stack import Stack
from tests.conftest import Gateway
from tests.support.alignment import aligned, channels
from tests.support.calls import Placed, request, told
from tests.support.wire import RATE, Heard, Wire, wire

pytestmark = [
    pytest.mark.stack,
    pytest.mark.alone,
    pytest.mark.asyncio(loop_scope="session"),
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
    said, heard = both(packets, call.recording.sent)
    aligned(
        channels(Path(urlsplit(stack.settings.recordings_url or "").path), placed.call_id),
        said,
        heard,
    )


def both(packets: Wire, sent: Pcm) -> tuple[Pcm, Pcm]:
    """Return what the phone said and heard, on one clock. ``sent`` tells which flow is which."""
    first, second = (packets.flow(ports) for ports in packets.ports()[:2])
    said, heard = (first, second) if _like(first, sent) > _like(second, sent) else (second, first)
    origin = min(said.origin, heard.origin)
    return _from(origin, said), _from(origin, heard)


def _like(flow: Heard, sent: Pcm) -> float:
    size = 1 << (len(flow.pcm) + len(sent)).bit_length()
    spectrum = np.fft.rfft(flow.pcm, size) * np.conj(np.fft.rfft(sent, size))
    norm = np.linalg.norm(flow.pcm.astype(float)) * np.linalg.norm(sent.astype(float))
    return float(np.fft.irfft(spectrum, size).max() / max(norm, 1.0))


def _from(origin: float, flow: Heard) -> Pcm:
    before = round((flow.origin - origin) * RATE)
    return np.concatenate((np.zeros(before, np.int16), flow.pcm))
