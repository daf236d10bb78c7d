"""``make demo``: start the stack, call one phone and hold a conversation.

The phone is part of ``dev`` and has a synthesised voice, or it is yours
(``PHONE=sip:you@host``). Latencies are measured at the phone, from the audio. The exit
code is 0 if the call had turns in both directions, an interruption, a tool call and a
key press, was recorded, and ended normally.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import tempfile
import wave
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import yaml
from aiohttp import web
from rich.console import Console
from rich.table import Table

from core.settings import Settings
from dev import scenario
from dev.caller import Exchange, converse
from dev.follow import Follower
from dev.phone import Phone, PhoneCall
from dev.speech.listen import level_dbfs
from dev.stack import Stack, StackOptions
from dev.stack.checklist import Checklist
from dev.stack.options import HOST, ROOT

FROM, TO = "+15105550100", "+15105550123"
_ANSWER_WITHIN_S = 20.0
_END_WITHIN_S = 20.0
_STORED_WITHIN_S = 10.0
_PICTURE_COLUMNS = 100
_SILENT_DBFS, _QUIET_DBFS = -96.0, -50.0


class DemoFailed(Exception):
    """The message is printed as it is."""


@dataclass
class _Kept:
    """Measurements of the call for the summary."""

    greeting_ms: float = 0.0
    exchanges: list[Exchange] = field(default_factory=list)
    recording: Path | None = None
    picture: Path | None = None
    levels: tuple[float, float] = (_SILENT_DBFS, _SILENT_DBFS)


async def run(settings: Settings, phone: str | None = None, picture: Path | None = None) -> int:
    """Hold the call; return 0 if all checks passed. ``picture`` gets the output as an SVG."""
    console = Console(highlight=False) if picture is None else _recording_console()
    checklist = Checklist(console)
    values: dict[str, Any] = {}
    async with contextlib.AsyncExitStack() as cleanup:
        cleanup.enter_context(checklist)
        tool_url = await cleanup.enter_async_context(reservations_server())
        values["agents_dir"] = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        values["default_agent"] = "demo"
        _write_agent(values["agents_dir"], tool_url)
        target = _Target.of(phone) if phone else None
        if target is not None:
            values["bridge_sip_listen"] = f"{target.own_address}:0"
        options = StackOptions(settings=settings, values=values, report=checklist)
        stack = await cleanup.enter_async_context(Stack(options))
        http = await cleanup.enter_async_context(aiohttp.ClientSession(stack.gateway_url))
        checklist.pause()
        if picture is not None:
            cleanup.callback(_draw, console, picture)
        if "providers" in stack.components:
            await stack.set_providers(scenario.control())
        try:
            if target is not None:
                return await _call_a_person(console, http, target)
            async with Phone() as own:
                return await _call_ourselves(console, http, own)
        except DemoFailed as error:
            console.print(f"[red]{error}[/]\n\nThe last lines of the gateway's log:")
            console.print("\n".join(stack.log_text("gateway").splitlines()[-10:]), markup=False)
            return 1


async def _call_ourselves(console: Console, http: aiohttp.ClientSession, phone: Phone) -> int:
    call_id = await _dial(console, http, TO, phone.address, record=True)
    kept = _Kept()
    async with Follower(http, call_id) as follower:
        try:
            call = await phone.next_call(_ANSWER_WITHIN_S)
            await call.answered(_ANSWER_WITHIN_S)
            await _converse(console, call, follower, kept)
            await call.ended(_END_WITHIN_S)
        except TimeoutError:
            console.print("[red]  the conversation stopped: no answer within the time limit[/]")
        with contextlib.suppress(TimeoutError):
            await follower.wait_ended(_END_WITHIN_S)
    with contextlib.suppress(TimeoutError):
        await _save_recording(http, call_id, kept)
    record = await _record(http, call_id)
    return _summary(console, record, follower, kept)


async def _converse(console: Console, call: PhoneCall, follower: Follower, kept: _Kept) -> None:
    greeting = await call.listen(_ANSWER_WITHIN_S, end_silence_ms=700)
    kept.greeting_ms = greeting.start_ms
    said = await follower.next_answer()
    _line(console, "agent", said, f"{greeting.start_ms:.0f} ms after the answer")
    async for exchange in converse(call, scenario.STEPS):
        kept.exchanges.append(exchange)
        question = getattr(exchange.step, "question", None)
        if question is not None:
            _line(console, "caller", question)
            _line(console, "agent", await follower.next_answer(), "interrupted")
        if isinstance(exchange.step, scenario.Press):
            _line(console, "caller", f"presses {exchange.said}")
        else:
            _line(console, "caller", exchange.said)
        note = f"{exchange.latency_ms:.0f} ms"
        if exchange.silence_ms is not None:
            note += f", silent {exchange.silence_ms:.0f} ms after the interruption began"
        _line(console, "agent", await follower.next_answer(), note)


async def _call_a_person(console: Console, http: aiohttp.ClientSession, target: _Target) -> int:
    console.print(f"\ncalling {target.uri}: answer the phone and talk\n")
    call_id = await _dial(console, http, target.number, target.address)
    async with Follower(http, call_id) as follower:
        async for turn in follower.turns():
            if turn.transcript:
                _line(console, "caller", turn.transcript)
            total = turn.latency.get("total")
            _line(console, "agent", turn.response, f"{total:.0f} ms" if total else "")
    record = await _record(http, call_id)
    console.print(f"\n{record['status']}, {record['disconnectionReason']}")
    return 0 if record["status"] == "completed" else 1


async def _dial(
    console: Console,
    http: aiohttp.ClientSession,
    number: str,
    address: str,
    *,
    record: bool = False,
) -> str:
    body = {
        "room_name": f"demo-{datetime.now():%H%M%S}",
        "participant_name": "Demo phone",
        "participant_identity": "phone",
        "record": record,
        "from_phone_number": FROM,
        "to_phone_number": number,
        "sip": {"outbound_address": address},
    }
    console.print(f"\nPOST /sip/call  {number} at {address}")
    async with http.post("/sip/call", json=body) as response:
        answer = await response.json()
        if response.status != 200:
            raise DemoFailed(f"POST /sip/call answered {response.status}: {answer}")
    console.print(f"{response.status} {answer['status']}: {answer['call_id']}\n")
    return str(answer["call_id"])


async def _record(http: aiohttp.ClientSession, call_id: str) -> dict[str, Any]:
    async with http.get(f"/v1/calls/{call_id}") as response:
        return dict(await response.json())


@contextlib.asynccontextmanager
async def reservations_server() -> AsyncIterator[str]:
    """Serve the restaurant's reservations to the agent's tool; yield the tool's URL."""

    async def check(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response({"free": int(asked["people"]) <= 8, "time": asked["time"]})

    app = web.Application()
    app.router.add_post("/check_table", check)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    try:
        yield f"http://{HOST}:{runner.addresses[0][1]}/check_table"
    finally:
        await runner.cleanup()


def _write_agent(directory: Path, tool_url: str) -> None:
    base = yaml.safe_load((ROOT / "agents" / "demo.yaml").read_text())
    text = yaml.safe_dump(scenario.agent(tool_url, base), sort_keys=False)
    (directory / "demo.yaml").write_text(text)


async def _save_recording(http: aiohttp.ClientSession, call_id: str, kept: _Kept) -> None:
    """Download the call's recording and its picture. Raises TimeoutError if there is none."""
    async with asyncio.timeout(_STORED_WITHIN_S):
        while True:
            if (await _record(http, call_id))["recordingAvailable"]:
                break
            await asyncio.sleep(0.2)
    folder = Path("data") / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    name = f"call-{datetime.now():%Y%m%d-%H%M%S}"
    paths = {"recording": folder / f"{name}.wav", "recording/waveform.svg": folder / f"{name}.svg"}
    for what, path in paths.items():
        async with http.get(f"/v1/calls/{call_id}/{what}") as response:
            response.raise_for_status()
            path.write_bytes(await response.read())
    kept.recording, kept.picture = paths.values()
    with wave.open(str(kept.recording)) as recording:
        frames = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
    caller, agent = frames.reshape(-1, 2).T
    kept.levels = (level_dbfs(caller), level_dbfs(agent))


def _recording_console() -> Console:
    # As for a pipe: a terminal's live list would be recorded once per refresh.
    return Console(highlight=False, record=True, force_terminal=False, width=_PICTURE_COLUMNS)


def _draw(console: Console, picture: Path) -> None:
    svg = console.export_svg(title="make demo")
    # Without rich's web fonts: the picture fetches nothing, and a local monospace font is used.
    picture.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))


def _line(console: Console, who: str, text: str, note: str = "") -> None:
    colour = "cyan" if who == "agent" else "yellow"
    console.print(f"  [{colour}]{who:>6}[/]  {text}" + (f"  [dim]{note}[/]" if note else ""))


def _summary(console: Console, record: dict[str, Any], follower: Follower, kept: _Kept) -> int:
    latencies = [exchange.latency_ms for exchange in kept.exchanges]
    silences = [e.silence_ms for e in kept.exchanges if e.silence_ms is not None]
    checks = {
        "the call ended normally": record["status"] == "completed"
        and record["disconnectionReason"] == "agent_hangup",
        "at least four turns in both directions": len(latencies) >= 4,
        "one interruption": bool(silences) and "barge_in" in follower.seen,
        "one tool call": "tool.called" in follower.seen,
        "one key pressed": "dtmf.received" in follower.seen,
        "a recording with both voices": min(kept.levels) > _QUIET_DBFS,
    }
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("call", f"{record['id']}: {record['status']}, {record['disconnectionReason']}")
    table.add_row("duration", f"{record['durationSeconds']} s, {len(record['transcripts'])} turns")
    table.add_row("first word", f"{kept.greeting_ms:.0f} ms after the answer")
    if latencies:
        table.add_row(
            "turn latency",
            f"median {median(latencies):.0f} ms, slowest {max(latencies):.0f} ms",
        )
    if silences:
        table.add_row("interruption", f"agent silent after {silences[0]:.0f} ms")
    if kept.recording is not None:
        caller, agent = kept.levels
        table.add_row("recording", f"{kept.recording}  (left: caller, right: agent)")
        table.add_row("audio levels", f"caller {caller:.1f} dBFS, agent {agent:.1f} dBFS")
        table.add_row("waveform", str(kept.picture))
    console.print()
    console.print(table)
    console.print()
    for check, held in checks.items():
        console.print(f"  {'[green]✓[/]' if held else '[red]✗[/]'} {check}")
    ok = all(checks.values())
    console.print(f"\n{'[green]The demo succeeded.' if ok else '[red]The demo failed.'}[/]\n")
    return 0 if ok else 1


@dataclass(frozen=True, slots=True)
class _Target:
    """A softphone: ``sip:user@host[:port]``. A user that is not a number is dialled as 1000."""

    uri: str
    number: str
    address: str
    own_address: str

    @classmethod
    def of(cls, uri: str) -> _Target:
        user, at, address = uri.removeprefix("sip:").partition("@")
        if not uri.startswith("sip:") or not at or not address:
            raise SystemExit("PHONE must look like sip:user@host or sip:user@host:port")
        parts = urlsplit(f"//{address}")
        digits = user.removeprefix("+")
        number = user if digits.isascii() and digits.isdigit() else "1000"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # No packet is sent: the system only chooses the interface towards the phone.
            probe.connect((parts.hostname, parts.port or 5060))
            own = str(probe.getsockname()[0])
        return cls(uri, number, address, own)
