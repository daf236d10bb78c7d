"""Two phones that call each other over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from core.audio import Pcm
from dev.phone import Phone, PhoneCall
from dev.phone.tracks import FRAME, SAMPLE_RATE
from dev.speech import listen

WAIT = 10.0  # a deadline, not an expectation
CALLER = "+15105550123"
CALLED = "+15550100"


@pytest.fixture
async def alice() -> AsyncIterator[Phone]:
    async with Phone() as phone:
        yield phone


@pytest.fixture
async def bob() -> AsyncIterator[Phone]:
    async with Phone() as phone:
        yield phone


async def ring(alice: Phone, bob: Phone, called: str = CALLED) -> tuple[PhoneCall, PhoneCall]:
    """Have Alice dial Bob; return her call and his."""
    outbound = await alice.dial(f"sip:{called}@{bob.address}", caller=CALLER)
    return outbound, await bob.next_call(WAIT)


async def connect(alice: Phone, bob: Phone) -> tuple[PhoneCall, PhoneCall]:
    outbound, inbound = await ring(alice, bob)
    await outbound.answered(WAIT)
    await inbound.answered(WAIT)
    return outbound, inbound


async def settled(*calls: PhoneCall) -> None:
    """Wait until 0.4 s of audio have been received in each call: around its own needless re-INVITE
    baresip drops packets that a busy machine has delayed (see dev/phone/phone.py)."""
    for media in (call.media for call in calls):
        while len(media.received) < 20 * FRAME:
            await asyncio.wait_for(media.moved(), WAIT)


def noise(seconds: float, seed: int) -> Pcm:
    """Return a signal that correlates with itself at one offset only."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(0, 3000, int(seconds * SAMPLE_RATE))
    return samples.clip(-30000, 30000).astype(np.int16)


async def all_arrived(sender: PhoneCall, receiver: PhoneCall) -> None:
    """Wait until all audio sent so far has been received: both streams began with the call,
    and neither pauses."""
    sent = len(sender.media.sent)
    arrived = receiver.media.wait_for(lambda: len(receiver.media.received) >= sent)
    await asyncio.wait_for(arrived, WAIT)


def is_same_audio(received: Pcm, sent: Pcm) -> bool:
    """Return True if all samples are equal within µ-law's step (1/16 of the value, at least 8)."""
    error = np.abs(received.astype(np.int64) - sent)
    return len(received) == len(sent) and bool(np.all(error <= 8 + np.abs(sent) // 16))


async def first_sound(call: PhoneCall) -> None:
    """Wait until the call has received 200 ms of the far end's voice."""

    def heard() -> bool:
        levels = listen.frame_levels(call.media.received.view(), SAMPLE_RATE)
        return int(np.count_nonzero(levels > listen.VOICE_DBFS)) >= 10

    await asyncio.wait_for(call.media.wait_for(heard), WAIT)
