"""Phone → SIP service → room → echo → room → SIP service → phone, with other calls in progress.

Measured at the phone, from the audio: when a burst of noise comes back. The SIP service is the
bridge, and livekit-sip if there is one. One call has an echo in its room. The others send noise
to each other without a pause, two or three per room, so that the SIP service carries all calls
in both directions and no agents use the machine's CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from livekit.api import LiveKitAPI

from core.settings import Settings
from dev.bench.report import Section
from dev.bench.sides import dial
from dev.bench.stats import SUMMARY, summary
from dev.phone import Phone, PhoneCall
from dev.stack.sip_backends import Backend, bridge_backend, livekit_sip_backend, livekit_sip_binary
from dev.standins.echo import Echo, measure_rtt, noise

CALLS = (1, 10)
BURSTS = 10
# Jitter buffers grow while calls are set up, and take some seconds to shrink again.
_SETTLE_S = 10.0
_WAIT_S = 20.0


async def measure(settings: Settings, step: Callable[[int, int], None]) -> Section:
    samples: dict[str, list[float]] = {}
    binary = livekit_sip_binary(settings)
    services = ["the bridge"] + (["livekit-sip"] if binary else [])
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
                trips = samples[f"{service}, {calls} call{'s' if calls > 1 else ''} up"] = []
                async with backend as running, _talking(running, calls) as echoed:
                    await asyncio.sleep(_SETTLE_S)
                    for burst in range(BURSTS):
                        trips.append(await measure_rtt(echoed, seed=burst))
                        done += 1
                        step(done, total)
    notes = [
        f"{BURSTS} bursts per row, on a call with an echo in its room; the other calls send noise "
        f"to each other, two or three per room. Measured {_SETTLE_S:.0f} s after the last call "
        "was set up. The phones, the echo and the servers share the machine. Goal: ≤ 220 ms with "
        "10 calls up, and no longer than livekit-sip."
    ]
    if "livekit-sip" not in services:
        notes.append(
            "Not compared with livekit-sip: it or Redis is missing (LIVEKIT_SIP_BIN, redis-server)."
        )
    return Section(
        title="Echo: from the phone to a room and back",
        command="python -m dev.bench echo",
        columns=("", *SUMMARY),
        rows=[(name, *summary(trips)) for name, trips in samples.items()],
        notes=notes,
        samples=samples,
    )


@contextlib.asynccontextmanager
async def _talking(backend: Backend, calls: int) -> AsyncIterator[PhoneCall]:
    """Hold ``calls`` answered calls; yield the first one, which is alone with an echo."""
    async with contextlib.AsyncExitStack() as cleanup:
        phone = await cleanup.enter_async_context(Phone())
        sip = backend.sip_api()
        cleanup.push_async_callback(sip.aclose)
        await cleanup.enter_async_context(Echo(backend, "echo"))
        echoed = await _dial(sip, phone, "echo", 0)
        others = [
            await _dial(sip, phone, f"others-{(number - 1) // 2 % (calls // 2 - 1)}", number)
            for number in range(1, calls)
        ]
        async with asyncio.TaskGroup() as tasks:
            talking = [tasks.create_task(_talk(call)) for call in others]
            yield echoed
            for task in talking:
                task.cancel()


async def _talk(call: PhoneCall) -> None:
    while True:
        await call.play(noise(5.0))


async def _dial(sip: LiveKitAPI, phone: Phone, room: str, number: int) -> PhoneCall:
    called, identity = f"+1555000{number:04d}", f"phone-{number}"
    await sip.sip.create_sip_participant(
        dial(phone.address, room, called=called, identity=identity)
    )
    call = await phone.next_call(_WAIT_S)
    await call.answered(_WAIT_S)
    return call
