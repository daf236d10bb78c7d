"""A caller's turn, measured at the phone: ours beside a bare livekit-agents worker.

**Turn**: from the end of the caller's last voiced frame to the agent's first. **Floor**: what the
simulated providers and the configured endpointing take in any case. **Path**: the round trip of an
echo over the same legs, in the same run. **Overhead**: turn - floor - path. Both sides use the
same bridge, providers, delays and endpointing; calls alternate, ours and theirs. A turn in which
a simulated provider was late by more than 3 ms is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import yaml
from livekit.protocol.agent_dispatch import RoomAgentDispatch
from livekit.protocol.room import CreateRoomRequest
from livekit.protocol.sip import CreateSIPParticipantRequest, SIPOutboundConfig

from core.settings import Settings
from dev.bench.answer_rig import RINGING_S
from dev.bench.breakdown import Checked, check, notes
from dev.bench.peer import bare_worker
from dev.bench.plot import shares
from dev.bench.report import Section
from dev.bench.stats import SUMMARY, paired, summary
from dev.echo import Echo, measure_rtt
from dev.peers.bare_worker import AGENT_NAME, GREETING, INSTRUCTIONS
from dev.phone import Answer, Phone, PhoneCall
from dev.providers import Cartesia, Control, Deepgram, OpenAI, Rule, Script
from dev.sip_backends import Backend
from dev.stack import Stack, StackOptions

ROUNDS, TURNS = 10, 12
ENDPOINTING_MS, STT_FINAL_MS, LLM_FIRST_TOKEN_MS, TTS_FIRST_BYTE_MS = 200, 0.0, 250.0, 90.0
FLOOR_MS = ENDPOINTING_MS + STT_FINAL_MS + LLM_FIRST_TOKEN_MS + TTS_FIRST_BYTE_MS
QUESTION, ANSWER = "When do you open?", "We open at five."
LONG_QUESTION = "What are your specials tonight?"
LONG_ANSWER = (
    "Tonight we have tomato soup with fresh basil, then grilled fish with lemon and potatoes, "
    "and roast lamb with rosemary and beans."
)
FROM, TO = "+15105550100", "+15105550123"
INTERRUPTION = "Thank you, that is enough."
_LATE_MS = 3.0
_WAIT_S = 20.0
_ECHOES = 5

Step = Callable[[int, int], None]


@dataclass
class Side:
    """What one side's calls gave, ms; ``turns`` by round."""

    name: str
    turns: list[list[float]] = field(default_factory=list)
    silences: list[float] = field(default_factory=list)
    greetings: list[float] = field(default_factory=list)
    dropped: int = 0


async def measure(settings: Settings, step: Step) -> Section:
    ours, bare = Side("Switchroom"), Side("bare livekit-agents worker")
    done = 0
    async with _Bench.run(settings) as bench:
        path = await bench.echo()
        for side in (ours, bare):  # warm
            await bench.hold(side, turns=1)
        ours, bare = Side(ours.name), Side(bare.name)
        for _ in range(ROUNDS):
            for side in (ours, bare):
                await bench.hold(side, turns=TURNS)
                done += 1
                step(done, 2 * ROUNDS)
        path += await bench.echo()
        checked = await bench.checked()
    return _section(ours, bare, median(path), checked)


class _Bench:
    """A stack with both workers, and one phone that both sides call."""

    def __init__(self, stack: Stack, http: aiohttp.ClientSession, phone: Phone) -> None:
        self._stack = stack
        self._http = http
        self._phone = phone
        self._calls: list[str] = []  # ours, and the turns of each as the phone heard them (ms)
        self._wire: list[list[float]] = []
        self._number = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, settings: Settings) -> AsyncIterator[_Bench]:
        async with contextlib.AsyncExitStack() as cleanup:
            agents = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
            agent = {
                "name": "Bench",
                "voiceMode": "hosted",
                "beginMessage": GREETING,
                "systemPrompt": INSTRUCTIONS,
            }
            (agents / "bench.yaml").write_text(yaml.safe_dump(agent))
            values = {
                "agents_dir": agents,
                "default_agent": "bench",
                "endpointing_ms": ENDPOINTING_MS,
                "worker_idle_processes": 3,
            }
            stack = await cleanup.enter_async_context(
                Stack(StackOptions(settings=settings, values=values))
            )
            await cleanup.enter_async_context(bare_worker(stack))
            http = await cleanup.enter_async_context(aiohttp.ClientSession(stack.gateway_url))
            phone = await cleanup.enter_async_context(Phone())
            phone.behave(Answer(after_s=RINGING_S))
            bench = cls(stack, http, phone)
            await bench._set_providers()
            yield bench

    async def hold(self, side: Side, *, turns: int) -> None:
        """One call: the greeting, the turns, one interruption."""
        self._number += 1
        room = f"turns-{self._number}"
        place = self._place_ours if side.name == "Switchroom" else self._place_bare
        async with contextlib.AsyncExitStack() as cleanup:
            await cleanup.enter_async_context(place(room))
            call = await self._phone.next_call(_WAIT_S)
            await call.answered(_WAIT_S)
            greeting = await call.listen(_WAIT_S, end_silence_ms=500)
            side.greetings.append(greeting.start_ms)
            kept, heard_ms = [], []
            for _ in range(turns):
                mark = await self._newest()
                span = await call.say(QUESTION)
                heard = await call.listen(_WAIT_S, end_silence_ms=500)
                heard_ms.append(heard.start_ms - span.end_ms)
                if await self._latest_delay(mark) > _LATE_MS:
                    side.dropped += 1
                else:
                    kept.append(heard_ms[-1])
            side.turns.append(kept)
            if side.name == "Switchroom":
                self._wire.append(heard_ms)
            side.silences.append(await _interrupt(call))
            await call.hangup()
            await call.ended(_WAIT_S)

    async def echo(self) -> list[float]:
        """Round trips over the same bridge, ms."""
        settings = self._stack.settings
        assert settings.livekit_api_key is not None and settings.livekit_api_secret is not None
        backend = Backend(
            "bridge",
            settings.livekit_url,
            self._stack.bridge_url,
            settings.livekit_api_key,
            settings.livekit_api_secret.get_secret_value(),
        )
        self._number += 1
        room = f"echo-{self._number}"
        sip = self._stack.sip_api()
        try:
            async with Echo(backend, room):
                await sip.sip.create_sip_participant(self._dial(room))
                call = await self._phone.next_call(_WAIT_S)
                await call.answered(_WAIT_S)
                await asyncio.sleep(2.0)  # the jitter buffers shrink after the set-up
                trips = [await measure_rtt(call, seed=number) for number in range(_ECHOES)]
                await call.hangup()
                await call.ended(_WAIT_S)
        finally:
            await sip.aclose()
        return trips

    async def checked(self) -> list[Checked]:
        """Every turn of our calls but the first one's: the record beside the wire."""
        found = []
        for call_id, wire_ms in list(zip(self._calls, self._wire, strict=True))[1:]:
            async with self._http.get(f"/v1/calls/{call_id}") as response:
                found += check(await response.json(), QUESTION, wire_ms)
        return found

    @contextlib.asynccontextmanager
    async def _place_ours(self, room: str) -> AsyncIterator[None]:
        body = {
            "room_name": room,
            "participant_name": "Bench",
            "participant_identity": "phone",
            "from_phone_number": FROM,
            "to_phone_number": TO,
            "sip": {"outbound_address": self._phone.address},
        }
        async with self._http.post("/sip/call", json=body) as response:
            response.raise_for_status()
            self._calls.append((await response.json())["call_id"])
        yield

    @contextlib.asynccontextmanager
    async def _place_bare(self, room: str) -> AsyncIterator[None]:
        """As LiveKit's example does: the dispatched agent dials the phone itself."""
        phone = {"address": self._phone.address, "to": TO, "from": FROM}
        livekit = self._stack.api()
        try:
            agent = RoomAgentDispatch(agent_name=AGENT_NAME, metadata=json.dumps(phone))
            await livekit.room.create_room(CreateRoomRequest(name=room, agents=[agent]))
            yield
        finally:
            await livekit.aclose()

    def _dial(self, room: str) -> CreateSIPParticipantRequest:
        return CreateSIPParticipantRequest(
            trunk=SIPOutboundConfig(hostname=self._phone.address),
            sip_call_to=TO,
            sip_number=FROM,
            room_name=room,
            participant_identity="phone",
        )

    async def _set_providers(self) -> None:
        rules = [
            Rule(equals=QUESTION, reply=ANSWER),
            Rule(equals=LONG_QUESTION, reply=LONG_ANSWER),
            Rule(equals=INTERRUPTION, reply="Goodbye."),
        ]
        control = Control(
            deepgram=Deepgram(
                phrases=[QUESTION, LONG_QUESTION, INTERRUPTION], final_delay_ms=STT_FINAL_MS
            ),
            openai=OpenAI(
                first_token_ms=LLM_FIRST_TOKEN_MS, scripts={"default": Script(rules=rules)}
            ),
            cartesia=Cartesia(first_byte_ms=TTS_FIRST_BYTE_MS),
        )
        address = f"{self._stack.providers.address}/control"
        async with self._http.put(address, json=control.model_dump(mode="json")) as response:
            response.raise_for_status()

    async def _newest(self) -> int:
        return max((entry["seq"] for entry in await self._log(0)), default=0)

    async def _latest_delay(self, since: int) -> float:
        """How late a simulated provider was at most since then, ms; of a voice, its first byte."""
        return max(
            (
                entry.get("first_byte_late_ms", entry.get("late_ms", 0.0))
                for entry in await self._log(since)
            ),
            default=0.0,
        )

    async def _log(self, since: int) -> list[dict[str, Any]]:
        address = f"{self._stack.providers.address}/control/log"
        async with self._http.get(address, params={"since": since}) as response:
            return list((await response.json())["entries"])


async def _interrupt(call: PhoneCall) -> float:
    """From the first voiced frame of an interruption to the agent's silence, ms."""
    await call.say(LONG_QUESTION)
    asked_ms = call.now_ms()
    await asyncio.sleep(2.5)  # the answer is under way and takes over eight seconds
    span = await call.say(INTERRUPTION)
    cut = await call.listen(_WAIT_S, since_ms=asked_ms, end_silence_ms=300)
    return cut.end_ms - span.start_ms


def _section(ours: Side, bare: Side, path_ms: float, checked: list[Checked]) -> Section:
    rows = []
    flat = {side.name: [turn for one in side.turns for turn in one] for side in (ours, bare)}
    for side in (ours, bare):
        turns = flat[side.name]
        rows.append(
            (
                side.name,
                *summary(turns),
                f"{median(turns) - FLOOR_MS - path_ms:.0f} ms",
                f"{median(side.silences):.0f} ms",
                f"{median(side.greetings):.0f} ms",
            )
        )
    ratios = paired([median(one) for one in ours.turns], [median(one) for one in bare.turns])
    return Section(
        title="Turn: from the caller's last word to the agent's first",
        command="python -m dev.bench turn",
        columns=(
            "",
            *(f"turn {name}" for name in SUMMARY),
            "overhead",
            "barge-in p50",
            "200 → first word p50",
        ),
        rows=rows,
        samples=flat | {"wire - record": [turn.unseen_ms for turn in checked]},
        plot=shares(flat),
        notes=[
            f"{len(flat[ours.name])} and {len(flat[bare.name])} turns in {ROUNDS} calls a side, "
            f"in alternation; the phone rings for {RINGING_S} s. {ours.dropped} and {bare.dropped} "
            "left out for a late provider. "
            f"Ratio of the calls' medians: {ratios}.",
            f"Floor {FLOOR_MS:.0f} ms: endpointing {ENDPOINTING_MS}, STT {STT_FINAL_MS:.0f}, LLM "
            f"{LLM_FIRST_TOKEN_MS:.0f}, TTS {TTS_FIRST_BYTE_MS:.0f}. Path {path_ms:.0f} ms (echo, "
            "same run). Overhead = turn - floor - path.",
            *notes(checked, of=ROUNDS * TURNS),
            "Goals: turn p50 < 900 ms, overhead ≤ 120 ms, p95 - p50 ≤ 150 ms, barge-in p50 ≤ "
            "300 ms, 200 → first word p50 ≤ 250 ms.",
            "The bare worker is dev/peers/bare_worker.py: the same plugins, delays and "
            "endpointing, Silero's VAD and all else at livekit-agents' defaults; its call is "
            "dispatched and dialled by plain livekit-api requests, as in LiveKit's example.",
        ],
    )
