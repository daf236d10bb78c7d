"""Redis, PostgreSQL, LiveKit and the SIP service, each away for 30 s while callers talk.

Without Redis or PostgreSQL all calls go on, and their records are complete afterwards. Without
LiveKit or the SIP service calls by phone end, since their audio goes through these; streams go on.
New calls are placed as usual or refused with a reason, and soon after the outage they are as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from core.settings import Settings
from dev.bench.chaos.callers import FarEnd
from dev.bench.chaos.conversation import Conversation
from dev.bench.chaos.faults import Part
from dev.bench.chaos.rig import Rig
from dev.bench.chaos.trial import judge
from dev.bench.report import Section
from dev.phone import Answer, Phone, RingOut

SERVICES: Final = ("redis", "postgres", "livekit-server", "bridge")
AWAY_S: Final = 30.0
AT_ONCE: Final = 2
"""Calls on each line."""
_LINES: Final = ("phone", "Twilio", "socket")
_ALL_GO_ON: Final = ("redis", "postgres")
_TURNS: Final = 9
"""They take longer than the outage."""
_BACK_WITHIN_S: Final = 30.0
_SETTLED_S: Final = 3.0
_CLEAR: Final = range(200, 500), range(503, 504)
"""The statuses of a request that is served, or refused for a reason."""
_NOT_PLACED: Final = "CALL_FAILED"
"""The answer to /sip/call, a 500, when the SIP service does not take the call."""

Step = Callable[[int, int], None]


@dataclass(slots=True)
class Outage:
    """``held``: the conversations during it, by line. ``asked``: how new calls were answered."""

    service: str
    held: dict[str, list[Conversation]] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    back_s: float | None = None
    problems: list[str] = field(default_factory=list)

    def goes_on(self, line: str) -> bool:
        return line != "phone" or self.service in _ALL_GO_ON

    def told(self) -> list[str]:
        lost = [
            f"{line}, {one.far.call_id}: {problem}"
            for line, several in self.held.items()
            if self.goes_on(line)
            for one in several
            for problem in one.problems
        ]
        return [f"{self.service} away: {problem}" for problem in [*self.problems, *lost]]


async def measure(settings: Settings, step: Step, away_s: float = AWAY_S) -> Section:
    chance, found = random.Random(19), list[Outage]()
    async with (
        Rig.run(settings) as rig,
        Phone(behaviour=Answer(after_s=0.5)) as phone,
        Phone(behaviour=RingOut()) as other,
    ):
        for number, service in enumerate(SERVICES):
            found.append(await _suffer(rig, phone, other, service, away_s, chance))
            step(number + 1, len(SERVICES))
        problems = [*rig.problems]
    return section(found, problems, away_s)


async def _suffer(
    rig: Rig, phone: Phone, other: Phone, service: str, away_s: float, chance: random.Random
) -> Outage:
    """``other`` is called during the outage."""
    outage = Outage(service)
    async with asyncio.TaskGroup() as talking:
        for line in _LINES:
            serves: Part = "worker" if line == "phone" else "streams"
            outage.held[line] = []
            for _ in range(AT_ONCE):
                conversation = Conversation(await _call(rig, phone, line), serves)
                outage.held[line].append(conversation)
                talking.create_task(conversation.hold(chance, _TURNS))
        await asyncio.sleep(_SETTLED_S)
        async with _away(rig, service):
            until = time.monotonic() + away_s
            await asyncio.sleep(_SETTLED_S)
            for line in _LINES:
                outage.asked[line] = await _ask(rig, other, line, outage)
            await asyncio.sleep(until - time.monotonic())
        await _back(rig, phone, outage)
    for line, several in outage.held.items():
        for conversation in several:
            before = list(conversation.problems)
            await judge(rig, conversation)
            if not outage.goes_on(line):
                # Lost with the service, but on record.
                conversation.problems[:] = before
    return outage


@contextlib.asynccontextmanager
async def _away(rig: Rig, service: str) -> AsyncIterator[None]:
    if service in ("redis", "postgres"):
        server = rig.redis if service == "redis" else rig.postgres
        await asyncio.to_thread(server.stop)
        try:
            yield
        finally:
            await asyncio.to_thread(server.start)
        return
    component = rig.stack.components[service]
    await component.kill()
    try:
        yield
    finally:
        await component.start()


async def _call(rig: Rig, phone: Phone, line: str) -> FarEnd:
    match line:
        case "phone":
            return await rig.dial(phone)
        case "Twilio":
            return await rig.on_twilio()
        case _:
            return await rig.on_socket()


async def _ask(rig: Rig, phone: Phone, line: str, outage: Outage) -> str:
    """Ask a gateway once for a call; return the status and code of its answer.

    Not by way of the load balancer: without its database no gateway is ready for it.
    """
    path, body = rig.request(line)
    path = rig.stack.gateway_url + path
    if line == "phone":
        body["sip"] = {"outbound_address": phone.address}
    try:
        async with rig.http.post(path, json=body) as answer:
            told = await answer.json()
            error = told.get("error")
            code = told.get("code") or (error["code"] if isinstance(error, dict) else "")
            if not (any(answer.status in clear for clear in _CLEAR) or code == _NOT_PLACED):
                outage.problems.append(f"a new call by {line}: {answer.status} {told}")
            return f"{answer.status} {code}".strip()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        outage.problems.append(f"a new call by {line}: {type(error).__name__} {error}")
        return "no answer"


async def _back(rig: Rig, phone: Phone, outage: Outage) -> None:
    """Note how long it takes until new calls on all lines talk."""
    began = time.monotonic()
    while time.monotonic() < began + _BACK_WITHIN_S:
        try:
            for line in _LINES:
                far = await _call(rig, phone, line)
                await far.hears(0.0, 10.0)
                await far.hang_up()
        except Exception as error:
            last = f"{type(error).__name__} {error}"
        else:
            outage.back_s = time.monotonic() - began
            return
    outage.problems.append(f"no new calls for {_BACK_WITHIN_S:g} s after it: {last}")


def section(found: Sequence[Outage], problems: Sequence[str], away_s: float) -> Section:
    return Section(
        title=f"Outages: a service that is away for {away_s:g} s",
        command="python -m dev.bench outages",
        columns=(
            "away",
            *(f"call by {line}" for line in _LINES),
            *(f"new: {line}" for line in _LINES),
            "all lines again",
        ),
        rows=[
            (
                one.service,
                *(_course(one, line) for line in _LINES),
                *(one.asked[line] for line in _LINES),
                "" if one.back_s is None else f"{one.back_s:.0f} s",
            )
            for one in found
        ],
        notes=[
            f"{AT_ONCE} calls on each line were under way and talked on, a question or a booking "
            "every few seconds, and their records were compared afterwards. **New**: the answer to "
            "a request for a call, three seconds into it. **All lines again**: until a call on "
            "each line, one after the other, had heard its greeting, from the moment the service "
            "was back.",
            "Two gateways behind a load balancer, three workers, two stream workers. Each service "
            "is stopped as a process: PostgreSQL in order, the others by SIGKILL.",
        ],
        failures=[*problems, *(problem for one in found for problem in one.told())],
    )


def _course(outage: Outage, line: str) -> str:
    several = outage.held[line]
    went_on = sum(not one.problems for one in several)
    if outage.goes_on(line) or went_on:
        return f"{went_on} of {len(several)} went on"
    return f"{len(several)} ended"
