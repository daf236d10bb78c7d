"""The rate of POST /sip/call if LiveKit answers at once (dev.standins.livekit).

Ours is the real gateway, with authentication, tenancy, the record and its timeline in SQLite. The
peer is dev.peers.bare_gateway, once without LiveKit and once with the two LiveKit requests of a
hand-written endpoint. One client drives all of them, in alternating rounds.

Two requests that stop early show where the gateway's time goes: one with an invalid number (HTTP,
authentication, validation of the body), and a dry run (also the destination policy and one LiveKit
request). The rest is the call: LiveKit requests, the record, the timeline, following the call.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from core.settings import Settings
from dev.bench.api import sip_call
from dev.bench.report import Section
from dev.bench.requests import lone_gateway
from dev.bench.requests.http_load import drive, post
from dev.bench.stats import paired
from dev.bench.usage import cpu_s
from dev.process import ManagedProcess, inherited_environment
from dev.stack import Stack
from dev.stack.environment import as_variables
from dev.stack.options import HOST, ROOT
from dev.stack.ports import PORTS, listening

ROUNDS, SECONDS, CONNECTIONS = 5, 3.0, 16
# It is never dialled: the stub accepts every call.
_TRUNK = "127.0.0.1:9"
_READY_WITHIN_S = 30.0

Step = Callable[[int, int], None]


@dataclass
class _Side:
    """One server under one kind of request."""

    name: str
    port: int
    pid: int
    change: Mapping[str, object] = field(default_factory=dict)
    """The fields that differ in the request's body."""
    status: int = 200
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """The server's CPU time per request, by round."""


async def measure(settings: Settings, step: Step) -> Section:
    secret = secrets.token_hex(16)
    numbers = itertools.count()
    async with contextlib.AsyncExitStack() as cleanup:
        ports = [PORTS.take(HOST) for _ in range(3)]
        for port in ports:
            cleanup.callback(PORTS.give_back, port)
        stack = Stack(
            lone_gateway.options(settings, secret, _TRUNK, livekit_url=f"ws://{HOST}:{ports[0]}")
        )
        stub = ["dev.standins.livekit", "--port", str(ports[0])]
        await cleanup.enter_async_context(_running(stub, ports[0], {}))
        await cleanup.enter_async_context(stack)
        ours = _port(stack.gateway_url), stack.gateway.pid or 0
        sides = [
            _Side("gateway", *ours),
            _Side("gateway, dry run", *ours, {"dry_run": True}),
            _Side("gateway, refused (400)", *ours, {"to_phone_number": "x"}, 400),
        ]
        peers: tuple[tuple[str, list[str]], ...] = (
            ("bare, no LiveKit", []),
            ("bare, two LiveKit requests", ["--dial", _TRUNK]),
        )
        for port, (name, more) in zip(ports[1:], peers, strict=True):
            command = ["dev.peers.bare_gateway", "--port", str(port), *more]
            pid = await cleanup.enter_async_context(
                _running(command, port, as_variables(stack.settings))
            )
            sides.append(_Side(name, port, pid))
        for round_ in range(-1, ROUNDS):  # the first only warms up
            for side in sides if round_ % 2 else sides[::-1]:
                await _drive(side, secret, numbers, keep=round_ >= 0)
            step(round_ + 1, ROUNDS)
    return _section(sides)


def _section(sides: list[_Side]) -> Section:
    ours = sides[0]
    rows = [
        (
            side.name,
            f"{median(side.rates):.0f}/s",
            f"{median(side.cpu_ms):.2f} ms",
            "" if side is ours else paired(ours.rates, side.rates),
        )
        for side in sides
    ]
    return Section(
        title="Gateway: POST /sip/call a second, LiveKit answering at once",
        command="python -m dev.bench gateway-rate",
        columns=("", "rate", "CPU for one", "gateway ÷ this"),
        rows=rows,
        notes=(
            f"{ROUNDS} rounds of {SECONDS:g} s per side over {CONNECTIONS} connections, in "
            "alternation. CPU is that of the server's process. The client, the stub and the server "
            "share the machine.",
            "Bare is aiohttp, pydantic with the gateway's own request model, and uvloop. It has no "
            "authentication, tenancy or record, and does not follow the call. Goal: 0.5 times the "
            "rate of the one without LiveKit.",
        ),
        samples={f"{side.name} (1/s)": side.rates for side in sides},
    )


async def _drive(side: _Side, secret: str, numbers: Iterator[int], *, keep: bool) -> None:
    before = cpu_s(side.pid)
    rate, statuses = await drive(
        HOST,
        side.port,
        lambda: post("/sip/call", HOST, secret, _body(next(numbers), side.change)),
        connections=CONNECTIONS,
        seconds=SECONDS,
    )
    used = cpu_s(side.pid) - before
    if set(statuses) != {side.status}:
        raise RuntimeError(f"answers by status: {dict(statuses)}")
    if keep:
        side.rates.append(rate)
        side.cpu_ms.append(1000 * used / statuses.total())


def _body(number: int, change: Mapping[str, object]) -> bytes:
    to = f"+1510{2_000_000 + number}"
    body = sip_call(f"rate-{number}", to_phone_number=to, agent=None)
    return json.dumps({**body, **change}).encode()


@contextlib.asynccontextmanager
async def _running(command: list[str], port: int, variables: dict[str, str]) -> AsyncIterator[int]:
    """Run a module that listens on ``port``; yield its process id. Raise ProcessFailed."""
    env = {**inherited_environment(without=list(Settings.model_fields)), **variables}
    process = ManagedProcess(
        command[0],
        [sys.executable, "-m", *command],
        env={**env, "PYTHONPATH": str(ROOT)},
        log_path=Path(os.devnull),
    )
    await process.start()
    try:
        await process.wait_ready(lambda: listening(port), timeout_s=_READY_WITHIN_S)
        yield process.pid or 0
    finally:
        await process.kill()


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port
