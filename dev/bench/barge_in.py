"""Barge-in, measured at the phone: how soon the agent is silent after the caller speaks.

The time is from the first voiced 20 ms frame that the phone sends to the end of the last voiced
one that it receives, so it includes the network path, the VAD and the agent's output. The agent
has the default sensitivity. The interrupted answer has no pauses, so that it is never silent by
chance; each interruption begins at a different point of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import aiohttp

from core.settings import Settings
from dev.bench.api import answering, hosted
from dev.bench.report import Section
from dev.bench.stats import SUMMARY, summary
from dev.phone import Phone, PhoneCall
from dev.phone.tracks import SAMPLE_RATE
from dev.providers import Control, Deepgram, OpenAI, Rule, Script
from dev.speech.listen import time_to_silence_ms
from dev.stack import StackOptions
from dev.stack.sip_backends import livekit_sip_binary, sip_stack

CALLS, LIVEKIT_SIP_CALLS = 6, 2
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
# The interruptions' times in the answer, s: spread, so that they do not all have the same phase
# of a buffer.
_FIRST_S, _STEP_S = 1.0, 0.137

Step = Callable[[int, int], None]


async def measure(settings: Settings, step: Step) -> Section:
    services = [("the bridge", "", CALLS)]
    if livekit_sip := livekit_sip_binary(settings):
        services.append(("livekit-sip", livekit_sip, LIVEKIT_SIP_CALLS))
    done, total = 0, PER_CALL * sum(calls for _, _, calls in services)
    found: dict[str, list[float]] = {}
    for service, binary, calls in services:
        taken = found[service] = []
        async with _line(settings, binary) as (host, phone):
            async for _ in _interruptions(host, phone, 1):
                pass  # warm
            for _ in range(calls):
                async for took in _interruptions(host, phone, PER_CALL):
                    taken.append(took)
                    done += 1
                    step(done, total)
    return _section(found)


@contextlib.asynccontextmanager
async def _line(settings: Settings, livekit_sip: str) -> AsyncIterator[tuple[str, Phone]]:
    """Run a whole stack with one agent on a number; yield the SIP host and a phone."""
    async with contextlib.AsyncExitStack() as cleanup:
        stack, host = await cleanup.enter_async_context(
            sip_stack(StackOptions(settings=settings), livekit_sip)
        )
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
        await stack.set_providers(control)
        await answering(http, NUMBER, hosted("Hello."))
        yield host, phone


async def _interruptions(host: str, phone: Phone, count: int) -> AsyncIterator[float]:
    """Hold a call in which the agent is interrupted ``count`` times; yield the ms of each."""
    call = await phone.dial(f"sip:{NUMBER}@{host}", caller=CALLER)
    await call.answered(_WAIT_S)
    await call.listen(_WAIT_S, end_silence_ms=500)
    for number in range(count):
        yield await _interrupt(call, _FIRST_S + number * _STEP_S)
    await call.hangup()
    await call.ended(_WAIT_S)


async def _interrupt(call: PhoneCall, after_s: float) -> float:
    """Return the time from an interruption's first voiced frame to the agent's silence, ms."""
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


def _section(found: dict[str, list[float]]) -> Section:
    counts = " and ".join(str(len(taken)) for taken in found.values())
    return Section(
        title="Barge-in: from the caller's first sound to the agent's silence",
        command="python -m dev.bench barge-in",
        columns=("", *SUMMARY),
        rows=[(service, *summary(taken)) for service, taken in found.items()],
        samples=found,
        notes=[
            f"{counts} interruptions, {PER_CALL} per call, at the default interruptionSensitivity "
            "of 0.8. Measured from the first voiced 20 ms frame that the phone sends to the end of "
            "the last one that it receives, so it includes the path both ways (the echo above). "
            "The phone, the providers, LiveKit, the gateway and the worker share the machine. "
            "Goal: p50 ≤ 300 ms.",
            *([] if len(found) > 1 else ["Not measured with livekit-sip: it or Redis is missing."]),
        ],
    )
