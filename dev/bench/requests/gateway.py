"""POST /sip/call compared with the LiveKit requests that it makes.

Ours: a POST with a bearer token, for a tenant, without an agent, until the response that
names the participant. It includes authentication, the room's tenancy, the record and its
timeline. Bare: ``create_room`` and ``create_sip_participant`` with
``wait_until_answered=False``, from a client that keeps its connections. Both dial the
same trunk, which is busy. Requests alternate one by one, in rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from statistics import median

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.room import CreateRoomRequest, DeleteRoomRequest

from core.settings import Settings
from dev.bench.api import sip_call
from dev.bench.report import Section
from dev.bench.sides import dial
from dev.bench.stats import paired, percentile
from dev.stack import Stack, StackOptions
from dev.standins.trunk import FixedReply, Trunk

ROUNDS, PER_ROUND = 8, 20
SIDES = ("POST /sip/call", "create_room + create_sip_participant")
CONCURRENCY, BURST, BURST_ROUNDS = 10, 60, 5
# Between two requests, for the last call to end, so that it does not slow down the next.
_SETTLE_S = 0.15

Step = Callable[[int, int], None]
Call = Callable[[str], Awaitable[None]]


async def measure(settings: Settings, step: Step) -> Section:
    secret = secrets.token_hex(16)
    async with Trunk(mode=FixedReply(486)) as trunk, contextlib.AsyncExitStack() as cleanup:
        options = StackOptions(
            settings=settings,
            worker=0,
            providers=False,
            values={
                "auth_required": True,
                "auth_api_secrets_json": json.dumps([{"id": "bench", "secret": secret}]),
                "sip_outbound_address": trunk.address,
            },
        )
        stack = await cleanup.enter_async_context(Stack(options))
        http = await cleanup.enter_async_context(
            aiohttp.ClientSession(stack.gateway_url, headers={"Authorization": f"Bearer {secret}"})
        )
        livekit, sip = stack.api(), stack.sip_api()
        cleanup.push_async_callback(livekit.aclose)
        cleanup.push_async_callback(sip.aclose)
        sides: tuple[Call, Call] = (_ours(http), _bare(livekit, sip, trunk.address))
        for warm in range(5):
            for side in sides:
                await side(f"warm-{warm}-{sides.index(side)}")
        total = ROUNDS * PER_ROUND + BURST_ROUNDS * BURST
        latency = await _one_by_one(livekit, sides, lambda done: step(done, total))
        bursts = await _in_bursts(
            livekit, sides, lambda done: step(ROUNDS * PER_ROUND + done, total)
        )
    return _section(latency, bursts)


def _section(latency: list[list[list[float]]], bursts: list[list[float]]) -> Section:
    rows = []
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        ours, bare = ([percentile(r, share) for r in side] for side in latency)
        rows.append(
            (f"one at a time, {name}", f"{median(ours):.1f} ms", f"{median(bare):.1f} ms")
            + (paired(ours, bare),)
        )
    ours, bare = bursts
    rows.append(
        (
            f"throughput at concurrency {CONCURRENCY}",
            f"{median(ours):.1f}/s",
            f"{median(bare):.1f}/s",
            paired(ours, bare),
        )
    )
    return Section(
        title="Gateway: POST /sip/call beside bare LiveKit requests",
        command="python -m dev.bench gateway",
        columns=("", *SIDES, "ratio"),
        rows=rows,
        notes=(
            f"{ROUNDS} rounds of {PER_ROUND} requests per side, alternating one by one; then "
            f"{BURST_ROUNDS} rounds of {BURST} requests per side. Ratio: median (min–max) of the "
            "rounds' ratios.",
            "Ours includes authentication, the room's tenancy, the stored record (SQLite) and "
            "its timeline. Goals: p50 ratio ≤ 1.0, throughput ratio ≥ 0.95.",
            "Both sides use the bridge. Everything runs on the same machine.",
        ),
        samples={
            name: [taken for round_ in side for taken in round_]
            for name, side in zip(SIDES, latency, strict=True)
        },
    )


async def _one_by_one(
    livekit: LiveKitAPI, sides: tuple[Call, Call], step: Callable[[int], None]
) -> list[list[list[float]]]:
    """Return the times in ms, by side, by round."""
    taken: list[list[list[float]]] = [[], []]
    for round_ in range(ROUNDS):
        for side in (0, 1):
            taken[side].append([])
        for n in range(PER_ROUND):
            # The first side alternates too.
            for side in ((0, 1), (1, 0))[n % 2]:
                room = f"b-{round_}-{n}-{side}"
                began = time.perf_counter()
                await sides[side](room)
                taken[side][-1].append(1000 * (time.perf_counter() - began))
                await asyncio.sleep(_SETTLE_S)
                await _delete(livekit, room)
            step(round_ * PER_ROUND + n + 1)
    return taken


async def _in_bursts(
    livekit: LiveKitAPI, sides: tuple[Call, Call], step: Callable[[int], None]
) -> list[list[float]]:
    """Return the requests per second, by side, by round."""
    rates: list[list[float]] = [[], []]
    for round_ in range(BURST_ROUNDS):
        for side in ((0, 1), (1, 0))[round_ % 2]:
            rooms = [f"c-{round_}-{side}-{n}" for n in range(BURST)]
            waiting = iter(rooms)
            began = time.perf_counter()
            await asyncio.gather(*(_drain(sides[side], waiting) for _ in range(CONCURRENCY)))
            rates[side].append(BURST / (time.perf_counter() - began))
            await asyncio.sleep(1.0)
            for room in rooms:
                await _delete(livekit, room)
        step((round_ + 1) * BURST)
    return rates


async def _drain(call: Call, rooms: Iterator[str]) -> None:
    for room in rooms:
        await call(room)


def _ours(http: aiohttp.ClientSession) -> Call:
    async def call(room: str) -> None:
        async with http.post("/sip/call", json=sip_call(room, agent=None)) as response:
            answer = await response.json()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {answer}")

    return call


def _bare(livekit: LiveKitAPI, sip: LiveKitAPI, address: str) -> Call:
    async def call(room: str) -> None:
        await livekit.room.create_room(CreateRoomRequest(name=room))
        await sip.sip.create_sip_participant(dial(address, room))

    return call


async def _delete(livekit: LiveKitAPI, room: str) -> None:
    with contextlib.suppress(ServerError):  # LiveKit may have closed it
        await livekit.room.delete_room(DeleteRoomRequest(room=room))
