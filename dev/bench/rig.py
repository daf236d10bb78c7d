"""Shared by benchmarks of both workers: the providers' delays, a stack, a phone, the path."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml
from livekit.api import LiveKitAPI

from core.settings import Settings
from dev.bench import sides
from dev.bench.api import hosted
from dev.bench.peer import bare_worker
from dev.bench.sides import Side
from dev.peers.bare_worker import GREETING, INSTRUCTIONS
from dev.phone import Phone
from dev.process import ManagedProcess
from dev.providers import Cartesia, Control, Deepgram, OpenAI, Rule, Script
from dev.stack import Stack, StackOptions
from dev.stack.sip_backends import Backend, sip_stack
from dev.standins.echo import Echo, measure_rtt

ENDPOINTING_MS: Final = 200
STT_FINAL_MS, LLM_FIRST_TOKEN_MS, TTS_FIRST_BYTE_MS = 0.0, 250.0, 90.0
FLOOR_MS: Final = ENDPOINTING_MS + STT_FINAL_MS + LLM_FIRST_TOKEN_MS + TTS_FIRST_BYTE_MS
"""The part of every turn that the configured delays take."""
IDLE_PROCESSES: Final = 3
AGENT: Final = hosted(GREETING, systemPrompt=INSTRUCTIONS)
"""Our agent, with the bare worker's greeting and instructions."""
_ECHOES = 5
_WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Rig:
    """A stack, both sides and a phone. ``http`` is a session for our gateway."""

    stack: Stack
    http: aiohttp.ClientSession
    phone: Phone
    ours: Side
    bare: Side

    async def echo(self, room: str) -> list[float]:
        """Measure the path: return round trips through the same SIP service, ms."""
        settings = self.stack.settings
        assert settings.livekit_api_key is not None and settings.livekit_api_secret is not None
        secret = settings.livekit_api_secret.get_secret_value()
        backend = Backend(
            "SIP", settings.livekit_url, settings.sip_http_url, settings.livekit_api_key, secret
        )
        sip = self.stack.sip_api()
        try:
            async with Echo(backend, room):
                await sip.sip.create_sip_participant(sides.dial(self.phone.address, room))
                call = await self.phone.next_call(_WAIT_S)
                await call.answered(_WAIT_S)
                await call.silence(2000, _WAIT_S)  # the jitter buffers shrink after the set-up
                trips = [await measure_rtt(call, seed=number) for number in range(_ECHOES)]
                await call.hangup()
                await call.ended(_WAIT_S)
        finally:
            await sip.aclose()
        return trips


@dataclass(frozen=True, slots=True)
class Pair:
    """Our stack, a bare worker on its LiveKit server, and a phone. ``http`` is a session for our
    gateway; phones call ``sip_address``."""

    stack: Stack
    sip_address: str
    bare: ManagedProcess
    http: aiohttp.ClientSession
    livekit: LiveKitAPI
    phone: Phone


@contextlib.asynccontextmanager
async def pair(
    settings: Settings, values: Mapping[str, Any], *, token: str = "", livekit_sip: str = ""
) -> AsyncIterator[Pair]:
    """Run a pair. ``values``: further settings; ``token``: for our gateway; ``livekit_sip``: its
    path, to use it instead of the bridge."""
    values = {"worker_idle_processes": IDLE_PROCESSES, **values}
    options = StackOptions(settings=settings, values=values)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        sip_stack(options, livekit_sip) as (stack, sip_address),
        bare_worker(stack) as bare,
        aiohttp.ClientSession(stack.gateway_url, headers=headers) as http,
        stack.api() as livekit,
        Phone() as phone,
    ):
        yield Pair(stack, sip_address, bare, http, livekit, phone)


@contextlib.asynccontextmanager
async def both_workers(
    settings: Settings,
    replies: Mapping[str, str],
    values: Mapping[str, Any] | None = None,
    *,
    livekit_sip: str = "",
) -> AsyncIterator[Rig]:
    """Run a stack with both workers, and a phone that both call. ``replies``: the callers' lines
    with the LLM's answers; ``values`` and ``livekit_sip`` as in ``pair``."""
    with agent_settings() as agent:
        values = {**agent, **(values or {})}
        async with pair(settings, values, livekit_sip=livekit_sip) as both:
            stack, http, phone = both.stack, both.http, both.phone
            await stack.set_providers(control(replies))
            yield Rig(
                stack,
                http,
                phone,
                sides.ours(http, running(stack.worker.pid), phone.address),
                sides.bare(both.livekit, running(both.bare.pid), phone.address),
            )


@contextlib.contextmanager
def agent_settings() -> Iterator[dict[str, Any]]:
    """Yield the settings with which every call gets our agent and the benchmarks' endpointing."""
    with tempfile.TemporaryDirectory() as agents:
        (Path(agents) / "bench.yaml").write_text(yaml.safe_dump(AGENT))
        yield {
            "agents_dir": Path(agents),
            "default_agent": "bench",
            "endpointing_ms": ENDPOINTING_MS,
        }


def running(pid: int | None) -> int:
    assert pid is not None, "it has just come up"
    return pid


def control(
    replies: Mapping[str, str],
    *,
    stt_final_ms: float = STT_FINAL_MS,
    llm_first_token_ms: float = LLM_FIRST_TOKEN_MS,
    llm_token_ms: float = 0.0,
) -> Control:
    """Return the providers' control document. ``replies``: the LLM's, by the callers' lines."""
    rules = [Rule(equals=said, reply=reply) for said, reply in replies.items()]
    return Control(
        deepgram=Deepgram(phrases=list(replies), final_delay_ms=stt_final_ms),
        openai=OpenAI(
            first_token_ms=llm_first_token_ms,
            token_ms=llm_token_ms,
            scripts={"default": Script(rules=rules)},
        ),
        cartesia=Cartesia(first_byte_ms=TTS_FIRST_BYTE_MS),
    )
