"""What benchmarks of both workers share: fixed delays of providers, a stack, a phone, the path."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from core.settings import Settings
from dev.bench import sides
from dev.bench.peer import bare_worker
from dev.bench.sides import Side
from dev.peers.bare_worker import GREETING, INSTRUCTIONS
from dev.phone import Phone
from dev.providers import Cartesia, Control, Deepgram, OpenAI, Rule, Script
from dev.stack import Stack, StackOptions
from dev.stack.sip_backends import Backend, sip_stack
from dev.standins.echo import Echo, measure_rtt

ENDPOINTING_MS: Final = 200
STT_FINAL_MS, LLM_FIRST_TOKEN_MS, TTS_FIRST_BYTE_MS = 0.0, 250.0, 90.0
FLOOR_MS: Final = ENDPOINTING_MS + STT_FINAL_MS + LLM_FIRST_TOKEN_MS + TTS_FIRST_BYTE_MS
"""What a turn takes in any case."""
IDLE_PROCESSES: Final = 3
_ECHOES = 5
_WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Rig:
    """``http`` is of our gateway."""

    stack: Stack
    http: aiohttp.ClientSession
    phone: Phone
    ours: Side
    bare: Side

    async def echo(self, room: str) -> list[float]:
        """The path: round trips over the same SIP service, ms."""
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


@contextlib.asynccontextmanager
async def both_workers(
    settings: Settings,
    replies: Mapping[str, str],
    values: Mapping[str, Any] | None = None,
    *,
    livekit_sip: str = "",
) -> AsyncIterator[Rig]:
    """A stack with both workers and a phone that both call. ``replies``: what callers say, and
    what the LLM answers; ``values``: further settings; ``livekit_sip``: its path, in place of
    the bridge."""
    async with contextlib.AsyncExitStack() as cleanup:
        agents = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        agent = {
            "name": "Bench",
            "voiceMode": "hosted",
            "beginMessage": GREETING,
            "systemPrompt": INSTRUCTIONS,
        }
        (agents / "bench.yaml").write_text(yaml.safe_dump(agent))
        all_values = {
            "agents_dir": agents,
            "default_agent": "bench",
            "endpointing_ms": ENDPOINTING_MS,
            "worker_idle_processes": IDLE_PROCESSES,
            **(values or {}),
        }
        options = StackOptions(settings=settings, values=all_values)
        stack, _ = await cleanup.enter_async_context(sip_stack(options, livekit_sip))
        peer = await cleanup.enter_async_context(bare_worker(stack))
        http = await cleanup.enter_async_context(aiohttp.ClientSession(stack.gateway_url))
        phone = await cleanup.enter_async_context(Phone())
        livekit = stack.api()
        cleanup.push_async_callback(livekit.aclose)
        control = _control(replies).model_dump(mode="json")
        async with http.put(f"{stack.providers.address}/control", json=control) as response:
            response.raise_for_status()
        yield Rig(
            stack,
            http,
            phone,
            sides.ours(http, running(stack.worker.pid), phone.address),
            sides.bare(livekit, running(peer.pid), phone.address),
        )


def running(pid: int | None) -> int:
    assert pid is not None, "it has just come up"
    return pid


def _control(replies: Mapping[str, str]) -> Control:
    rules = [Rule(equals=said, reply=reply) for said, reply in replies.items()]
    return Control(
        deepgram=Deepgram(phrases=list(replies), final_delay_ms=STT_FINAL_MS),
        openai=OpenAI(first_token_ms=LLM_FIRST_TOKEN_MS, scripts={"default": Script(rules=rules)}),
        cartesia=Cartesia(first_byte_ms=TTS_FIRST_BYTE_MS),
    )
