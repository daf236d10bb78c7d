"""Phone → SIP service → room → echo → room → SIP service → phone, with calls up beside it.

Measured at the phone, from the audio: a burst of noise, and where it comes back.
On the bridge, and on livekit-sip when there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from statistics import median

from livekit.protocol.sip import CreateSIPParticipantRequest, SIPOutboundConfig

from core.settings import Settings
from dev.bench.report import Section, percentile
from dev.echo import Echo, measure_rtt
from dev.phone import Phone, PhoneCall
from dev.sip_backends import Backend, bridge_backend, livekit_sip_backend

CALLS = (1, 10)
BURSTS = 10  # of every call
_SETTLE_S = 3.0
_WAIT_S = 20.0


async def measure(settings: Settings, step: Callable[[int, int], None]) -> Section:
    rows = []
    binary = str(settings.livekit_sip_bin or shutil.which("livekit-sip") or "")
    services = ["the bridge"] + (["livekit-sip"] if binary and _redis() else [])
    total = len(services) * len(CALLS) * BURSTS
    done = 0
    with tempfile.TemporaryDirectory() as logs:
        for service in services:
            for calls in CALLS:
                backend = (
                    bridge_backend()
                    if service == "the bridge"
                    else livekit_sip_backend(Path(logs), binary)
                )
                trips: list[float] = []
                async with backend as running, _echoing(running, calls) as up:
                    await asyncio.sleep(_SETTLE_S)
                    for burst in range(BURSTS):
                        # One after the other, so that no burst meets another's.
                        trips.append(await measure_rtt(up[burst % calls], seed=burst))
                        done += 1
                        step(done, total)
                rows.append(
                    (
                        f"{service}, {calls} call{'s' if calls > 1 else ''} up",
                        f"{median(trips):.0f} ms",
                        f"{percentile(trips, 0.95):.0f} ms",
                        f"{max(trips):.0f} ms",
                    )
                )
    notes = [
        f"{BURSTS} bursts a row, over all of its calls in turn. The phones, the rooms' echoes and "
        "the servers share the machine. Goal: ≤ 220 ms with 10 calls up."
    ]
    if "livekit-sip" not in services:
        notes.append(
            "livekit-sip was not there (LIVEKIT_SIP_BIN and redis-server) to compare with."
        )
    return Section(
        title="Echo: from the phone to a room and back",
        command="python -m dev.bench echo",
        columns=("", "p50", "p95", "max"),
        rows=rows,
        notes=notes,
    )


def _redis() -> bool:
    return shutil.which("redis-server") is not None


@contextlib.asynccontextmanager
async def _echoing(backend: Backend, calls: int) -> AsyncIterator[list[PhoneCall]]:
    """So many answered calls, each in a room with an echo."""
    async with contextlib.AsyncExitStack() as cleanup:
        phone = await cleanup.enter_async_context(Phone())
        sip = backend.sip_api()
        cleanup.push_async_callback(sip.aclose)
        up = []
        for number in range(calls):
            room = f"echo-{number}"
            await cleanup.enter_async_context(Echo(backend, room))
            await sip.sip.create_sip_participant(
                CreateSIPParticipantRequest(
                    trunk=SIPOutboundConfig(hostname=phone.address),
                    sip_call_to=f"+1555000{number:04d}",
                    sip_number="+15105550100",
                    room_name=room,
                    participant_identity="phone",
                )
            )
            call = await phone.next_call(_WAIT_S)
            await call.answered(_WAIT_S)
            up.append(call)
        yield up
