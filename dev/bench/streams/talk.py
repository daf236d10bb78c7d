"""One call as its caller has it: says something, hears the answer, interrupts."""

from __future__ import annotations

import asyncio
import functools

from core.audio import Pcm
from dev.phone import Span
from dev.phone.tracks import SAMPLE_RATE
from dev.speech import CALLER_VOICE, synthesize
from dev.speech.listen import Segment, speech_bounds, time_to_silence_ms, voiced_segments
from dev.standins.twilio import Call, TwilioServer

CALLER = "+14155550100"
_WAIT_S = 30.0
_END_MS = 500.0  # of silence ends what the agent says
_QUIET_MS = 400.0  # of silence after an interruption: the agent has stopped


class Talk:
    """A call whose stream has begun, ``answered_ms`` after it reached Twilio.

    Positions are ms on the clock of the call's recording. Each wait raises TimeoutError, or
    CallOver if the call has ended.
    """

    def __init__(self, call: Call, answered_ms: float) -> None:
        self.call = call
        self._answered_ms = answered_ms

    @classmethod
    async def begin(cls, twilio: TwilioServer, number: str) -> Talk:
        """Call the number."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        call = await twilio.call(number, CALLER)
        await call.streaming(timeout_s=_WAIT_S)
        return cls(call, (loop.time() - asked) * 1000 - call.since_answer_ms())

    async def greeted(self) -> None:
        """Wait until the agent has said its greeting."""
        await self.listen(0.0)

    def first_ms(self) -> float:
        """Return how long after the call reached Twilio the agent was first heard."""
        first = voiced_segments(self.heard(), SAMPLE_RATE)[0]
        return self._answered_ms + first.start_ms

    async def say(self, text: str) -> Span:
        """Say a text; return the position of its voice when it has been said."""
        pcm, voice = _spoken(text)
        said = await self.call.caller.say(pcm)
        return Span(said.start_ms + voice.start_ms, said.start_ms + voice.end_ms)

    async def listen(self, after_ms: float) -> float:
        """Wait until the agent has said something after that; return when its voice began."""
        heard = self.call.heard
        began = await heard.until_sound(after_ms, _WAIT_S)
        await heard.until_quiet(_END_MS, _WAIT_S)
        segments = voiced_segments(heard.pcm(after_ms), SAMPLE_RATE)
        return after_ms + segments[0].start_ms if segments else began

    async def ask(self, text: str) -> float:
        """Say a text and hear the answer; return the time between, in ms."""
        span = await self.say(text)
        return await self.listen(span.end_ms) - span.end_ms

    async def interrupt(self, question: str, after_s: float, words: str) -> float:
        """Ask, and interrupt the answer that long after it began.

        Return the time from the caller's first voice until the agent was silent, in ms.
        """
        asked = await self.say(question)
        await self.call.heard.until_sound(asked.end_ms, _WAIT_S)
        await asyncio.sleep(after_s)
        span = await self.say(words)
        await self.listen(span.end_ms)
        took = time_to_silence_ms(self.heard(), SAMPLE_RATE, span.start_ms, quiet_ms=_QUIET_MS)
        if took is None:
            raise TimeoutError("the agent was not silenced")
        return took

    def heard(self) -> Pcm:
        """Return the recording so far."""
        return self.call.heard.pcm()

    async def end(self) -> None:
        """Hang up."""
        self.call.hang_up()
        await self.call.ended(_WAIT_S)


@functools.cache
def _spoken(text: str) -> tuple[Pcm, Segment]:
    """Return a text's samples, and the position of the voice in them."""
    pcm = synthesize(text, CALLER_VOICE, SAMPLE_RATE).pcm
    bounds = speech_bounds(pcm, SAMPLE_RATE)
    assert bounds is not None, text
    return pcm, bounds
