"""The sides of the comparison: the programs that answer a Twilio number with an agent."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from core.settings import Settings
from dev.bench.api import post
from dev.bench.rig import AGENT, ENDPOINTING_MS, running
from dev.bench.streams.voice_urls import VoiceUrls, connecting
from dev.peers.bare_worker import GREETING, INSTRUCTIONS
from dev.process import ManagedProcess, inherited_environment
from dev.setup import pipecat
from dev.stack import Stack
from dev.stack.environment import as_variables
from dev.stack.options import HOST, ROOT
from dev.stack.ports import PORTS, listening

OURS: Final = "Switchroom"
RECORDED: Final = "Switchroom, recorded"
BARE: Final = "bare livekit-agents session"
PIPECAT: Final = "Pipecat"
PIPECAT_UNTUNED: Final = "Pipecat, default STT latency"
GATEWAY, STREAMS = "gateway", "streams"
"""Our components in the stack."""

_READY_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Side:
    """``voice_url``: where Twilio asks what to do with a call. ``pids``: the processes that serve
    the calls, by name."""

    name: str
    voice_url: str
    pids: Mapping[str, int]


@contextlib.asynccontextmanager
async def ours(stack: Stack, urls: VoiceUrls, *, recorded: bool = False) -> AsyncIterator[Side]:
    """Yield our side, the stack's gateway and stream worker. An application asks for each call's
    session, as ``POST /v1/sessions/twilio`` documents it."""
    async with aiohttp.ClientSession(stack.gateway_url) as http:
        agent = {**AGENT, "recording": {"enabled": recorded}}
        agent_id = str((await post(http, "/v1/agents", agent))["id"])

        async def session(form: Mapping[str, str]) -> str:
            body = {"agentId": agent_id, "from": form["From"], "to": form["To"], "record": recorded}
            headers = {"Accept": "text/xml"}
            async with http.post("/v1/sessions/twilio", json=body, headers=headers) as answer:
                answer.raise_for_status()
                return await answer.text()

        pids = {name: running(stack.components[name].pid) for name in (GATEWAY, STREAMS)}
        yield Side(RECORDED if recorded else OURS, urls.add(session), pids)


@contextlib.asynccontextmanager
async def bare(stack: Stack, urls: VoiceUrls) -> AsyncIterator[Side]:
    async with _peer(stack, urls, BARE, [sys.executable, "-m", "dev.peers.bare_streams"]) as side:
        yield side


@contextlib.asynccontextmanager
async def pipecat_bot(
    stack: Stack, urls: VoiceUrls, *, untuned: bool = False
) -> AsyncIterator[Side]:
    """Run Pipecat's bot, in its environment. ``untuned``: it expects the STT's transcripts as late
    as Deepgram's cloud sends them."""
    python = await pipecat.ensure()
    command = [str(python), str(ROOT / "dev" / "peers" / "pipecat_twilio" / "bot.py")]
    if untuned:
        command.append("--default-stt-latency")
    name = PIPECAT_UNTUNED if untuned else PIPECAT
    async with _peer(stack, urls, name, command) as side:
        yield side


@contextlib.asynccontextmanager
async def _peer(
    stack: Stack, urls: VoiceUrls, name: str, command: Sequence[str]
) -> AsyncIterator[Side]:
    """Run a peer with the stack's providers. Raise ProcessFailed."""
    env = inherited_environment(without=list(Settings.model_fields))
    env |= {"PYTHONUNBUFFERED": "1", **as_variables(stack.settings)}
    port = PORTS.take(HOST)
    options = {
        "--port": str(port),
        "--providers": stack.providers.address,
        "--endpointing-ms": str(ENDPOINTING_MS),
        "--greeting": GREETING,
        "--instructions": INSTRUCTIONS,
    }
    process = ManagedProcess(
        name,
        [*command, *(word for option in options.items() for word in option)],
        env=env,
        cwd=ROOT,
        log_path=stack.run_dir / f"{name}.log",
    )
    await process.start()
    try:
        await process.wait_ready(lambda: listening(port), timeout_s=_READY_WITHIN_S)
        url = urls.add(connecting(f"ws://{HOST}:{port}/stream"))
        yield Side(name, url, {name: running(process.pid)})
    finally:
        await process.kill()
        PORTS.give_back(port)
