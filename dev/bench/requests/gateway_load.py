"""200 calls at concurrency 40: the outcome of each, by POST /sip/call and by LiveKit requests.

Both sides dial a trunk that is busy and counts the numbers that it was asked to call. For each
request the benchmark records the response, its time, and how often the trunk was dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import aiohttp
from livekit.api import LiveKitAPI, ServerError
from livekit.protocol.room import CreateRoomRequest, DeleteRoomRequest, ListRoomsRequest

from core.settings import Settings
from dev.bench.api import sip_call
from dev.bench.report import Section
from dev.bench.requests import lone_gateway
from dev.bench.sides import dial
from dev.bench.stats import percentile
from dev.stack import Stack, StackOptions
from dev.stack.sip_backends import Backend, bridge_backend, livekit_sip_backend, livekit_sip_binary
from dev.standins.trunk import FixedReply, Trunk

ROUNDS, CALLS, CONCURRENCY = 3, 200, 40
_SIDES = ("POST /sip/call", "create_room + create_sip_participant")
_OVER_WITHIN_S = 60.0  # deadlines, not expectations
_GONE_WITHIN_S = 60.0

Step = Callable[[int, int], None]
Place = Callable[[str, str], Awaitable[str]]
"""Takes a room and a number to call; returns "" if the call was accepted, else a code."""


@dataclass
class _Side:
    """One side's results; ``rates`` has an entry for each round."""

    taken: list[float] = field(default_factory=list)
    """The times of the accepted requests, ms."""
    rates: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    twice: int = 0
    """Numbers that were dialled more than once."""
    lost: int = 0
    """Numbers that were accepted and never dialled, or refused and dialled nevertheless."""


async def measure(settings: Settings, step: Step) -> Section:
    rows: list[tuple[str, ...]] = []
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        backends = [bridge_backend()]
        if binary := livekit_sip_binary(settings):
            backends.append(livekit_sip_backend(Path(folder), binary))
        total = len(backends) * ROUNDS
        done = itertools.count(1)
        for context in backends:
            async with context as backend:
                sides = await _on(settings, backend, lambda: step(next(done), total))
            rows += _rows(backend.name, sides)
            for name, side in zip(_SIDES, sides, strict=True):
                samples[f"{backend.name}: {name}"] = side.taken
    return Section(
        title=f"Gateway: {CALLS} calls at concurrency {CONCURRENCY}",
        command="python -m dev.bench gateway-load",
        columns=("", *_SIDES),
        rows=rows,
        notes=(
            f"{ROUNDS} rounds of {CALLS} requests per side, in alternation, each with its own room "
            "and number, without an agent; the trunk is busy. Over all rounds: accepted; refused, "
            "by the code of the refusal; dialled twice; lost, which is accepted and never dialled, "
            "or refused and dialled. Times are of accepted requests.",
            "The benchmark fails if one of our refusals has no Retry-After, or if a record has not "
            "ended afterwards.",
        ),
        samples=samples,
    )


def _rows(backend: str, sides: tuple[_Side, _Side]) -> list[tuple[str, ...]]:
    def row(name: str, show: Callable[[_Side], str]) -> tuple[str, ...]:
        return (f"{backend}: {name}", *map(show, sides))

    return [
        row("accepted", lambda side: f"{side.answers['']} of {side.answers.total()}"),
        row("refused", lambda side: _refusals(side.answers)),
        row("dialled twice, lost", lambda side: f"{side.twice}, {side.lost}"),
        row("p50", lambda side: f"{percentile(side.taken, 0.5):.0f} ms" if side.taken else ""),
        row("p95", lambda side: f"{percentile(side.taken, 0.95):.0f} ms" if side.taken else ""),
        row("answers a second", lambda side: f"{median(side.rates):.1f}/s"),
    ]


def _refusals(answers: Counter[str]) -> str:
    return ", ".join(f"{count} {code}" for code, count in answers.items() if code) or "0"


async def _on(
    settings: Settings, backend: Backend, step: Callable[[], None]
) -> tuple[_Side, _Side]:
    sides = (_Side(), _Side())
    secret = secrets.token_hex(16)
    async with (
        Trunk(mode=FixedReply(486)) as trunk,
        Stack(_options(settings, backend, secret, trunk.address)) as stack,
        aiohttp.ClientSession(
            stack.gateway_url,
            headers={"Authorization": f"Bearer {secret}"},
            connector=aiohttp.TCPConnector(limit=CONCURRENCY),
        ) as http,
        backend.api() as livekit,
        backend.sip_api() as sip,
    ):
        places = (_ours(http), _bare(livekit, sip, trunk.address))
        numbers = (f"+1510{2_000_000 + n}" for n in range(2 * ROUNDS * CALLS))
        for round_ in range(ROUNDS):
            for index in ((0, 1), (1, 0))[round_ % 2]:
                called = [next(numbers) for _ in range(CALLS)]
                before = len(trunk.seen.called)
                answers = await _place_all(places[index], called, sides[index])
                await _over(http)
                await _gone(livekit, settle=index == 1)
                _judge(sides[index], answers, trunk.seen.called[before:])
            step()
    return sides


async def _place_all(place: Place, numbers: list[str], side: _Side) -> dict[str, str]:
    """Call the numbers; return the response for each."""
    answers: dict[str, str] = {}
    waiting = iter(numbers)

    async def placing(waiting: Iterator[str]) -> None:
        for number in waiting:
            began = time.perf_counter()
            answers[number] = await place(f"load-{number}", number)
            if not answers[number]:
                side.taken.append(1000 * (time.perf_counter() - began))

    began = time.perf_counter()
    await asyncio.gather(*(placing(waiting) for _ in range(CONCURRENCY)))
    side.rates.append(len(numbers) / (time.perf_counter() - began))
    return answers


def _judge(side: _Side, answers: dict[str, str], called: list[str]) -> None:
    dialled = Counter(called)
    side.answers.update(answers.values())
    side.twice += sum(count > 1 for count in dialled.values())
    side.lost += sum((number in dialled) != (not code) for number, code in answers.items())


def _ours(http: aiohttp.ClientSession) -> Place:
    async def place(room: str, number: str) -> str:
        body = sip_call(room, to_phone_number=number, agent=None)
        async with http.post("/sip/call", json=body) as response:
            answer = await response.json()
            if response.status == 200:
                return ""
            if response.status in {429, 503} and "Retry-After" not in response.headers:
                raise RuntimeError(f"{response.status} without Retry-After: {answer}")
            return f"{response.status} {answer['code']}"

    return place


def _bare(livekit: LiveKitAPI, sip: LiveKitAPI, address: str) -> Place:
    async def place(room: str, number: str) -> str:
        try:
            await livekit.room.create_room(CreateRoomRequest(name=room))
            await sip.sip.create_sip_participant(dial(address, room, called=number))
        except ServerError as error:
            return f"{error.status} {error.code}"
        except TimeoutError:
            return "timeout"
        return ""

    return place


async def _over(http: aiohttp.ClientSession) -> None:
    """Wait until every record has ended. Raise TimeoutError."""
    async with asyncio.timeout(_OVER_WITHIN_S):
        for status in ("queued", "ringing", "in-progress"):
            while await _how_many(http, status):  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.2)


async def _how_many(http: aiohttp.ClientSession, status: str) -> int:
    async with http.get("/v1/calls", params={"status": status, "limit": 1}) as response:
        return int((await response.json())["total"])


async def _gone(livekit: LiveKitAPI, *, settle: bool) -> None:
    """Wait until no room is left; ``settle`` deletes them. Raise TimeoutError."""
    if settle:
        await asyncio.sleep(1.0)  # for the last busy responses to arrive
        for room in (await livekit.room.list_rooms(ListRoomsRequest())).rooms:
            with contextlib.suppress(ServerError):  # LiveKit may have closed it
                await livekit.room.delete_room(DeleteRoomRequest(room=room.name))
    async with asyncio.timeout(_GONE_WITHIN_S):
        while (await livekit.room.list_rooms(ListRoomsRequest())).rooms:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.2)


def _options(settings: Settings, backend: Backend, secret: str, trunk: str) -> StackOptions:
    """Return the options of a gateway for a LiveKit server that is already running."""
    return lone_gateway.options(
        settings,
        secret,
        trunk,
        livekit_url=backend.url,
        livekit_sip_url=backend.sip_url,
        livekit_api_key=backend.key,
        livekit_api_secret=backend.secret,
    )
