"""Short calls, several at once, inbound and outbound, ended by each side in turn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
from baresip import BaresipError

from dev.bench.api import answering, hosted, post, sip_call
from dev.bench.rig import LLM_FIRST_TOKEN_MS, TTS_FIRST_BYTE_MS
from dev.phone import Answer, CallEnded, CallRefused, Phone, PhoneCall
from dev.providers import Cartesia, Control, Deepgram, OpenAI, Rule, Script, ToolCall
from dev.stack import Stack

NUMBER, CALLER = "+15105550199", "+15105550123"
# Short, so that there are many calls: leaks are per call.
GREETING = "Hello."
QUESTION, ANSWER = "What time do you open?", "We open at five."
GOODBYE, FAREWELL = "Thank you, goodbye.", "Goodbye."
RINGING_S = 0.5
_WAIT_S = 20.0
_REQUESTS_AT_ONCE = 40
_END_SILENCE_MS = 400.0
# Between the first calls of a round, so that the callers are not in step.
_STAGGER_S = 0.7
# After a failed call, so that a permanent fault does not occur thousands of times.
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Held:
    """A successful call, times in ms. ``calls``: how many calls had begun before it."""

    calls: int
    way: str
    first_word_ms: float
    turns_ms: tuple[float, ...]


@dataclass(slots=True)
class Load:
    """An agent on a number, and phones that call it and that it calls."""

    stack: Stack
    http: aiohttp.ClientSession
    agent_id: str
    held: list[Held] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    begun: int = 0

    @classmethod
    async def prepare(cls, stack: Stack, http: aiohttp.ClientSession) -> Load:
        """Set the providers, publish the agent, attach the number."""
        rules = [
            Rule(equals=QUESTION, reply=ANSWER),
            Rule(equals=GOODBYE, reply=FAREWELL, call=ToolCall(name="end_call")),
        ]
        control = Control(
            deepgram=Deepgram(phrases=[QUESTION, GOODBYE]),
            openai=OpenAI(
                first_token_ms=LLM_FIRST_TOKEN_MS, scripts={"default": Script(rules=rules)}
            ),
            cartesia=Cartesia(first_byte_ms=TTS_FIRST_BYTE_MS),
        )
        await stack.set_providers(control)
        load = cls(stack, http, await answering(http, NUMBER, hosted(GREETING)))
        await load._fill_pools()
        return load

    async def _fill_pools(self) -> None:
        """Make the gateway open all its database connections. With few concurrent calls it would
        open them one by one over minutes, and seem to leak files."""

        async def ask() -> None:
            async with self.http.get("/v1/calls") as response:
                response.raise_for_status()

        async with asyncio.TaskGroup() as requests:
            for _ in range(_REQUESTS_AT_ONCE):
                requests.create_task(ask())

    async def hold(self, at_once: int, seconds: float) -> None:
        """Hold calls until the time is over; calls that have begun by then end normally.

        Each time the phones are new, so that the calls that a phone remembers do not grow.
        """
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as lanes:
            for lane in range(at_once):
                lanes.create_task(self._lane(lane, until))

    async def _lane(self, lane: int, until: float) -> None:
        ways = (
            self._inbound_phone_ends,
            self._outbound_api_ends,
            self._inbound_agent_ends,
            self._outbound_phone_ends,
        )
        async with Phone(behaviour=Answer(after_s=RINGING_S)) as phone:
            await asyncio.sleep(lane * _STAGGER_S)
            for number in itertools.count(lane):
                if time.monotonic() >= until:
                    return
                await self._one(ways[number % len(ways)], phone)

    async def _one(self, way: Callable[[Phone], Awaitable[Held]], phone: Phone) -> None:
        name = way.__name__.strip("_").replace("_", " ")
        self.begun += 1
        try:
            self.held.append(await way(phone))
        except (CallEnded, CallRefused, TimeoutError, BaresipError, aiohttp.ClientError) as error:
            self.lost.append(f"{name}: {type(error).__name__} {error}".strip())
            for call in phone.calls:
                with contextlib.suppress(CallEnded, BaresipError, TimeoutError):
                    await call.hangup()
            await asyncio.sleep(_PAUSE_S)

    async def _inbound_phone_ends(self, phone: Phone) -> Held:
        call, first_word_ms, begun = await self._inbound(phone)
        turns = (await _turn(call), await _turn(call))
        await call.hangup()
        await call.ended(_WAIT_S)
        return Held(begun, "inbound", first_word_ms, turns)

    async def _inbound_agent_ends(self, phone: Phone) -> Held:
        call, first_word_ms, begun = await self._inbound(phone)
        turn_ms = await _turn(call)
        await call.say(GOODBYE)
        await call.ended(_WAIT_S)
        return Held(begun, "inbound", first_word_ms, (turn_ms,))

    async def _outbound_phone_ends(self, phone: Phone) -> Held:
        call, first_word_ms, begun, _ = await self._outbound(phone)
        turn_ms = await _turn(call)
        await call.hangup()
        await call.ended(_WAIT_S)
        return Held(begun, "outbound", first_word_ms, (turn_ms,))

    async def _outbound_api_ends(self, phone: Phone) -> Held:
        call, first_word_ms, begun, call_id = await self._outbound(phone)
        turn_ms = await _turn(call)
        await post(self.http, f"/v1/calls/{call_id}/end", {})
        await call.ended(_WAIT_S)
        return Held(begun, "outbound", first_word_ms, (turn_ms,))

    async def _inbound(self, phone: Phone) -> tuple[PhoneCall, float, int]:
        """Dial, and wait until the greeting has ended; return the call, the time from the INVITE
        to the first word in ms, and the number of calls before."""
        begun, invited = self.begun, time.monotonic()
        host = self.stack.settings.bridge_sip_listen
        call = await phone.dial(f"sip:{NUMBER}@{host}", caller=CALLER)
        await call.answered(_WAIT_S)
        greeting = await call.listen(_WAIT_S, end_silence_ms=_END_SILENCE_MS)
        return call, 1000 * (call.media.zero - invited) + greeting.start_ms, begun

    async def _outbound(self, phone: Phone) -> tuple[PhoneCall, float, int, str]:
        """Place a call, and wait until the greeting has ended; return the call, the time from the
        phone's 200 to the first word in ms, the number of calls before, and the call's id."""
        begun = self.begun
        body = sip_call(
            f"soak-{begun}",
            from_phone_number=NUMBER,
            to_phone_number=CALLER,
            agent=self.agent_id,
            sip={"outbound_address": phone.address},
        )
        placed = await post(self.http, "/sip/call", body)
        call = await phone.next_call(_WAIT_S)
        await call.answered(_WAIT_S)
        greeting = await call.listen(_WAIT_S, end_silence_ms=_END_SILENCE_MS)
        return call, greeting.start_ms, begun, str(placed["call_id"])


async def _turn(call: PhoneCall) -> float:
    """Ask, and return the time from the end of the question to the start of the answer, ms."""
    span = await call.say(QUESTION)
    heard = await call.listen(_WAIT_S, end_silence_ms=_END_SILENCE_MS)
    return heard.start_ms - span.end_ms
