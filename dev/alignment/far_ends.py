"""The far ends of the lines that a measured conversation needs, and what they said and heard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from core.audio import Pcm
from dev.alignment.offsets import FAR_RATE
from dev.phone import Phone, PhoneCall
from dev.phone.wire import Wire
from dev.speech import CALLER_VOICE, synthesize
from dev.speech.listen import Segment, voiced_segments
from dev.standins.socket import SocketFarEnd
from dev.standins.twilio import Call, Heard, Said

PAUSE_MS: Final = 900.0
"""Silence that ends what one side says. Pauses within it are shorter."""

_WITHIN_S = 30.0
_FRAME_MS = 20.0
_MUSIC_PAUSE_MS = 500.0  # there is none as long in the hold music


@dataclass(frozen=True, slots=True)
class FarSide:
    """What the far end said and heard, at FAR_RATE on one clock.

    ``texts``: what it said, in order. ``pace``: how much faster its clock runs than ours.
    ``holds``: where it heard hold music, with silence in its place in ``said`` and ``heard``.
    """

    said: Pcm
    heard: Pcm
    texts: list[str]
    pace: float = 1.0
    holds: list[Segment] = field(default_factory=list)


class FarEnd(Protocol):
    """``hears`` and ``quiet`` raise TimeoutError."""

    async def say(self, text: str) -> None:
        """Speak; return when the words have been sent."""

    async def hears(self) -> None:
        """Wait until the agent is heard after the last words."""

    async def quiet(self) -> None:
        """Wait until the agent has said all."""

    def side(self) -> FarSide:
        """Return what has been said and heard."""


class StreamEnd:
    """The far end of a stream. ``say`` speaks samples at ``rate``."""

    def __init__(
        self,
        heard: Heard,
        say: Callable[[Pcm], Awaitable[Said]],
        rate: int,
        pace: float = 1.0,
    ) -> None:
        self._heard = heard
        self._say = say
        self._rate = rate
        self._pace = pace
        self._said: list[tuple[float, str]] = []
        self._until_ms = 0.0

    async def say(self, text: str) -> None:
        said = await self._say(synthesize(text, CALLER_VOICE, self._rate).pcm)
        # A frame is sent when it is complete: what it holds was said before.
        self._said.append((said.start_ms - _FRAME_MS, text))
        self._until_ms = said.end_ms

    async def hears(self) -> None:
        await self._heard.until_sound(self._until_ms, _WITHIN_S)

    async def quiet(self) -> None:
        await self._heard.until_quiet(PAUSE_MS, _WITHIN_S)

    def side(self) -> FarSide:
        heard = self._heard.pcm()
        said = np.zeros(len(heard), np.int16)
        for start_ms, text in self._said:
            pcm = synthesize(text, CALLER_VOICE, FAR_RATE).pcm
            first = round(start_ms * FAR_RATE / 1000)
            said[first : first + len(pcm)] = pcm[: len(said) - first]
        return FarSide(said, heard, [text for _, text in self._said], self._pace)


def twilio_end(call: Call) -> StreamEnd:
    return StreamEnd(call.heard, call.caller.say, FAR_RATE, 1 + call.network.drift_ppm / 1e6)


def socket_end(client: SocketFarEnd) -> StreamEnd:
    return StreamEnd(client.heard, client.say, client.rate)


class PhoneEnd:
    """A phone on an established call, whose packets were watched from its beginning.

    ``phone``: the one that a human answers whom the agent calls.
    """

    def __init__(self, call: PhoneCall, packets: Wire, phone: Phone) -> None:
        self._call = call
        self._packets = packets
        self._phone = phone
        self._texts: list[str] = []
        self._until_ms = 0.0
        self._asked: list[int] = []  # the texts that a hold followed

    async def say(self, text: str) -> None:
        await self._call.say(text)
        self._texts.append(text)
        self._until_ms = self._call.now_ms()

    async def held(self, says: str) -> None:
        """Be on hold, and say that there, until the human has declined and the music is over.

        The agent must be silent for longer than PAUSE_MS before and after the music.
        """
        human = await self._phone.next_call(_WITHIN_S)
        await human.answered(_WITHIN_S)
        await human.speech_begins(_WITHIN_S)
        await self._call.say(says)
        self._asked.append(len(self._texts) - 1)
        await human.dtmf("2")
        await human.ended(_WITHIN_S)
        await self._call.silence(_MUSIC_PAUSE_MS, _WITHIN_S)
        self._until_ms = self._call.now_ms()

    async def hears(self) -> None:
        await self._call.speech_begins(_WITHIN_S, since_ms=self._until_ms)

    async def quiet(self) -> None:
        await self._call.silence(PAUSE_MS, _WITHIN_S)

    def side(self) -> FarSide:
        said, heard = self._packets.call(self._call.audio_port)
        music = voiced_segments(heard, FAR_RATE, hangover_ms=PAUSE_MS)
        words = voiced_segments(said, FAR_RATE, hangover_ms=PAUSE_MS)
        holds: list[Segment] = []
        for asked in self._asked:
            # What is said on hold is no text, so there is one stretch of voice more for each.
            request = words[asked + len(holds)]
            holds.append(next(each for each in music if each.start_ms > request.end_ms))
        for each in holds:
            span = slice(*(round(ms * FAR_RATE / 1000) for ms in (each.start_ms, each.end_ms)))
            said[span] = heard[span] = 0
        return FarSide(said, heard, self._texts, holds=holds)
