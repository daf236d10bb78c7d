"""How soon a caller hears the agent, measured at the phone.

Inbound: from our INVITE to the 200, and to the first voiced frame of the greeting. Outbound:
from the phone's own 200 to the first voiced frame. And inbound again right after a publish:
the first call with a new version beside the tenth.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from core.settings import Settings
from dev.bench.report import Section
from dev.bench.stats import SUMMARY, summary
from dev.phone import Answer, Phone, PhoneCall
from dev.providers import Cartesia, Control, OpenAI
from dev.stack import Stack, StackOptions

CALLS = 50
PUBLISHES, FILLERS = 20, 8
NUMBER, CALLER = "+15105550199", "+15105550123"
LLM_FIRST_TOKEN_MS, TTS_FIRST_BYTE_MS = 250.0, 90.0
_WAIT_S = 20.0
# A person takes longer to pick up; an agent has got to be ready by then.
RINGING_S = 1.5
# Between two calls, for the last one's job process to be replaced.
_SETTLE_S = 0.5

Step = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Heard:
    """One call, ms. ``answered_ms``: INVITE → 200, inbound only."""

    answered_ms: float
    greeting_ms: float


async def measure(settings: Settings, step: Step) -> Section:
    done, total = 0, 2 * CALLS + PUBLISHES * 2

    def tick() -> None:
        nonlocal done
        done += 1
        step(done, total)

    async with _Bench.run(settings) as bench:
        for _ in range(3):
            await bench.inbound()
        inbound = await _times(bench.inbound, CALLS, tick)
        outbound = await _times(bench.outbound, CALLS, tick)
        first, tenth = [], []
        for number in range(PUBLISHES):
            await bench.publish(f"Good day, this is greeting number {number}.")
            first.append(await bench.inbound())
            tick()
            for _ in range(FILLERS // 2):
                await asyncio.gather(bench.inbound(), bench.inbound())
            await asyncio.sleep(_SETTLE_S)
            tenth.append(await bench.inbound())
            tick()
    return _section(inbound, outbound, first, tenth)


async def _times(call: Callable[[], Any], count: int, tick: Callable[[], None]) -> list[Heard]:
    found = []
    for _ in range(count):
        await asyncio.sleep(_SETTLE_S)
        found.append(await call())
        tick()
    return found


class _Bench:
    """A whole stack with one agent on one number, and one phone."""

    def __init__(self, stack: Stack, http: aiohttp.ClientSession, phone: Phone) -> None:
        self._stack = stack
        self._http = http
        self._phone = phone
        self._agent_id = ""
        self._number = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, settings: Settings) -> AsyncIterator[_Bench]:
        async with contextlib.AsyncExitStack() as cleanup:
            options = StackOptions(settings=settings, values={"worker_idle_processes": 3})
            stack = await cleanup.enter_async_context(Stack(options))
            http = await cleanup.enter_async_context(aiohttp.ClientSession(stack.gateway_url))
            phone = await cleanup.enter_async_context(Phone())
            phone.behave(Answer(after_s=RINGING_S))
            bench = cls(stack, http, phone)
            await bench._set_up()
            yield bench

    async def _set_up(self) -> None:
        control = Control(
            openai=OpenAI(first_token_ms=LLM_FIRST_TOKEN_MS),
            cartesia=Cartesia(first_byte_ms=TTS_FIRST_BYTE_MS),
        )
        address = f"{self._stack.providers.address}/control"
        async with self._http.put(address, json=control.model_dump(mode="json")) as response:
            response.raise_for_status()
        agent = await self._post(
            "/v1/agents",
            {"name": "Bench", "voiceMode": "hosted", "beginMessage": "Hello, how can I help you?"},
        )
        self._agent_id = agent["id"]
        await self._post(
            "/api/v1/phone-numbers/attach",
            {
                "provider": "sip",
                "phoneNumber": NUMBER,
                "agentId": self._agent_id,
                "direction": "both",
            },
        )

    async def publish(self, greeting: str) -> None:
        path = f"/v1/agents/{self._agent_id}"
        async with self._http.patch(path, json={"beginMessage": greeting}) as response:
            response.raise_for_status()

    async def inbound(self) -> Heard:
        """Dial the number, hear the first word, hang up."""
        invited = time.monotonic()
        host = self._stack.settings.bridge_sip_listen
        call = await self._phone.dial(f"sip:{NUMBER}@{host}", caller=CALLER)
        await call.answered(_WAIT_S)
        answered_ms = 1000 * (call.media.zero - invited)
        heard_ms = await _first_word(call)
        return Heard(answered_ms, answered_ms + heard_ms)

    async def outbound(self) -> Heard:
        """Be called, answer, hear the first word, hang up."""
        self._number += 1
        body = {
            "room_name": f"bench-{self._number}",
            "participant_name": "Bench",
            "participant_identity": "phone",
            "from_phone_number": NUMBER,
            "to_phone_number": CALLER,
            "agent": self._agent_id,
            "sip": {"outbound_address": self._phone.address},
        }
        await self._post("/sip/call", body)
        call = await self._phone.next_call(_WAIT_S)
        await call.answered(_WAIT_S)
        return Heard(0.0, await _first_word(call))

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._http.post(path, json=body) as response:
            response.raise_for_status()
            return dict(await response.json())


async def _first_word(call: PhoneCall) -> float:
    """Ms from the answer to the first voiced frame; hangs up then."""
    heard_ms = await call.speech_begins(_WAIT_S)
    await call.hangup()
    await call.ended(_WAIT_S)
    return heard_ms


def _section(
    inbound: list[Heard], outbound: list[Heard], first: list[Heard], tenth: list[Heard]
) -> Section:
    samples = {
        "inbound, INVITE → 200": [call.answered_ms for call in inbound],
        "inbound, INVITE → first word": [call.greeting_ms for call in inbound],
        "outbound, 200 → first word": [call.greeting_ms for call in outbound],
        "inbound, first call after a publish": [call.greeting_ms for call in first],
        "inbound, tenth call after a publish": [call.greeting_ms for call in tenth],
    }
    return Section(
        title="Answer: until the caller hears the agent",
        command="python -m dev.bench answer",
        columns=("", *SUMMARY),
        rows=[(name, *summary(values)) for name, values in samples.items()],
        samples=samples,
        notes=[
            f"{CALLS} warm calls a row, one at a time; {PUBLISHES} publishes. The called phone "
            f"rings for {RINGING_S} s. The TTS gives its first byte after "
            f"{TTS_FIRST_BYTE_MS:.0f} ms. The phone, the providers, LiveKit, gateway and worker "
            "share the machine. Goals: INVITE → first word p50 < 800 ms, 200 → first word p50 ≤ "
            "250 ms; the first call after a publish no slower than the tenth (medians).",
        ],
    )
