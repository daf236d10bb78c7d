"""The caller of a scenario: speaks, presses keys, interrupts, and times the agent's answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from dev.phone.audio import Heard
from dev.phone.call import PhoneCall
from dev.scenario import Interrupt, Press, Speak, Step

_ANSWER_WITHIN_S = 20.0
# Longer than a pause between two sentences of an answer, shorter than the agent's latency.
_END_SILENCE_MS = 700.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn as the caller hears it, in milliseconds on the phone's clock.

    ``latency_ms``: from the caller's last voiced frame (the end of the key press) to
    the agent's first. ``silence_ms``: from the first voiced frame of an interruption
    to the agent's silence.
    """

    step: Step
    said: str
    heard: Heard
    latency_ms: float
    silence_ms: float | None = None


async def converse(call: PhoneCall, steps: Iterable[Step]) -> AsyncIterator[Exchange]:
    """Play the caller's steps on an answered call, after the greeting."""
    for step in steps:
        match step:
            case Speak(text=text):
                span = await call.say(text)
                heard = await call.listen(_ANSWER_WITHIN_S, end_silence_ms=_END_SILENCE_MS)
                yield Exchange(step, text, heard, heard.start_ms - span.end_ms)
            case Press(digit=digit):
                await call.dtmf(digit)
                pressed_ms = call.now_ms()
                heard = await call.listen(_ANSWER_WITHIN_S, end_silence_ms=_END_SILENCE_MS)
                yield Exchange(step, digit, heard, heard.start_ms - pressed_ms)
            case Interrupt():
                yield await _interrupt(call, step)


async def _interrupt(call: PhoneCall, step: Interrupt) -> Exchange:
    await call.say(step.question)
    asked_ms = call.now_ms()
    await call.speech_begins(_ANSWER_WITHIN_S, since_ms=asked_ms)
    await asyncio.sleep(step.after_ms / 1000)
    span = await call.say(step.text)
    cut = await call.listen(_ANSWER_WITHIN_S, since_ms=asked_ms, end_silence_ms=300)
    heard = await call.listen(_ANSWER_WITHIN_S, end_silence_ms=_END_SILENCE_MS)
    return Exchange(
        step,
        step.text,
        heard,
        heard.start_ms - span.end_ms,
        silence_ms=cut.end_ms - span.start_ms,
    )
