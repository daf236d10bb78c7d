"""Barge-in, measured at the phone: how soon the agent is silent when the caller speaks.

From the first voiced 20 ms frame that the phone sends to the end of the last voiced one that it
receives: the network path, the VAD and the agent's own output are all in it. At the agent's
default sensitivity. The answer that is interrupted has no pauses, so that silence is never luck;
where in it the caller begins differs from one interruption to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import aiohttp

from core.settings import Settings
from dev.bench.report import Section
from dev.bench.stats import SUMMARY, summary
from dev.listen import time_to_silence_ms
from dev.phone import Phone, PhoneCall
from dev.phone_tracks import SAMPLE_RATE
from dev.providers import Control, Deepgram, OpenAI, Rule, Script
from dev.stack import Stack, StackOptions

CALLS = 6
PER_CALL = 10
NUMBER, CALLER = "+15105550199", "+15105550123"
QUESTION = "What are your specials tonight?"
INTERRUPTION = "Thank you, that is enough."
ANSWER = (
    "Tonight we have tomato soup with fresh basil and grilled fish with lemon and potatoes and "
    "roast lamb with rosemary and beans and a chocolate cake with cream and a bowl of berries."
)
_WAIT_S = 20.0
_QUIET_MS = 400.0
# Into the answer, s: spread, so that no phase of a buffer is met every time.
_FIRST_S, _STEP_S = 1.0, 0.137

Step = Callable[[int, int], None]


async def measure(settings: Settings, step: Step) -> Section:
    found: list[float] = []
    async with _stack(settings) as (stack, phone):
        async for _ in _interruptions(stack, phone, 1):
            pass  # warm
        for _ in range(CALLS):
            async for took in _interruptions(stack, phone, PER_CALL):
                found.append(took)
                step(len(found), CALLS * PER_CALL)
    return _section(found)


@contextlib.asynccontextmanager
async def _stack(settings: Settings) -> AsyncIterator[tuple[Stack, Phone]]:
    """A whole stack with one agent on one number, and one phone."""
    async with contextlib.AsyncExitStack() as cleanup:
        stack = await cleanup.enter_async_context(Stack(StackOptions(settings=settings)))
        http = await cleanup.enter_async_context(aiohttp.ClientSession(stack.gateway_url))
        phone = await cleanup.enter_async_context(Phone())
        rules = [
            Rule(equals=QUESTION, reply=ANSWER),
            Rule(equals=INTERRUPTION, reply="Of course."),
        ]
        control = Control(
            deepgram=Deepgram(phrases=[QUESTION, INTERRUPTION]),
            openai=OpenAI(scripts={"default": Script(rules=rules)}),
        )
        agent = {"name": "Bench", "voiceMode": "hosted", "beginMessage": "Hello."}
        async with http.put(
            f"{stack.providers.address}/control", json=control.model_dump(mode="json")
        ) as response:
            response.raise_for_status()
        async with http.post("/v1/agents", json=agent) as response:
            response.raise_for_status()
            agent_id = (await response.json())["id"]
        number = {
            "provider": "sip",
            "phoneNumber": NUMBER,
            "agentId": agent_id,
            "direction": "both",
        }
        async with http.post("/api/v1/phone-numbers/attach", json=number) as response:
            response.raise_for_status()
        yield stack, phone


async def _interruptions(stack: Stack, phone: Phone, count: int) -> AsyncIterator[float]:
    """One call in which the agent is interrupted ``count`` times, ms each."""
    host = stack.settings.bridge_sip_listen
    call = await phone.dial(f"sip:{NUMBER}@{host}", caller=CALLER)
    await call.answered(_WAIT_S)
    await call.listen(_WAIT_S, end_silence_ms=500)
    for number in range(count):
        yield await _interrupt(call, _FIRST_S + number * _STEP_S)
    await call.hangup()
    await call.ended(_WAIT_S)


async def _interrupt(call: PhoneCall, after_s: float) -> float:
    """From the first voiced frame of an interruption to the agent's silence, ms."""
    await call.say(QUESTION)
    await call.speech_begins(_WAIT_S, since_ms=call.now_ms())
    await asyncio.sleep(after_s)
    span = await call.say(INTERRUPTION)
    await call.silence(_QUIET_MS, _WAIT_S)
    await call.listen(_WAIT_S, since_ms=span.end_ms, end_silence_ms=500)  # "Of course."
    took = time_to_silence_ms(
        call.recording.received, SAMPLE_RATE, span.start_ms, quiet_ms=_QUIET_MS
    )
    if took is None:
        raise TimeoutError("the agent was not silenced")
    return took


def _section(found: list[float]) -> Section:
    return Section(
        title="Barge-in: from the caller's first sound to the agent's silence",
        command="python -m dev.bench barge-in",
        columns=("", *SUMMARY),
        rows=[("interruptionSensitivity 0.8, the default", *summary(found))],
        samples={"barge-in": found},
        notes=[
            f"{len(found)} interruptions in {CALLS} calls. From the first voiced 20 ms frame that "
            "the phone sends to the end of the last that it hears; the way there and back (the "
            "echo above) is in it. Phone, providers, LiveKit, gateway and worker share the "
            "machine. Goal: p50 ≤ 300 ms.",
        ],
    )
