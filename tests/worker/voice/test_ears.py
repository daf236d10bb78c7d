"""Words are located in the audio that went to the STT, also after it lost its connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from statistics import median
from typing import Any

import numpy as np
import pytest
from livekit import rtc
from livekit.agents import inference, stt
from livekit.agents.llm import ChatMessage
from livekit.agents.utils import http_context

from core.models import AgentConfig
from core.settings import Settings
from dev.providers import Control, Deepgram, Fault, Providers
from dev.speech import CALLER_VOICE, Speech, synthesize
from dev.stack.environment import GivenSettings
from worker.line import Rates
from worker.timing.turn_clock import TurnClock
from worker.voice.fallback import STT_OPTIONS
from worker.voice.providers import Providers as Plugins

pytestmark = pytest.mark.providers

RATE = 16_000
START = 1_700_000_000.0
PHRASE = "What time do you open on Sunday?"
BEFORE_S = 0.7


class Ear:
    """The STT of one agent, and the clock of its words, which runs as fast as the audio comes."""

    def __init__(self, providers: Providers, names: Any) -> None:
        settings: Settings = GivenSettings(
            deepgram_base_url=providers.deepgram_base_url, deepgram_api_key="key"
        )
        self.now = START
        config = AgentConfig(name="Ear", stt=names)
        self.plugins = Plugins(config, settings, Rates(speech=RATE, voice=24_000))
        self.stt, _ = self.plugins.make_stt(inference.VAD(model="silero"))
        self.clock = TurnClock(0.2, origins=self.plugins.origins, clock=lambda: self.now)
        self.understood: asyncio.Queue[str] = asyncio.Queue()

    async def hear(
        self, stream: stt.RecognizeStream, pcm: np.ndarray[Any, np.dtype[np.int16]]
    ) -> None:
        async def frames() -> AsyncIterator[rtc.AudioFrame]:
            step = RATE // 50
            for start in range(0, len(pcm) - step + 1, step):
                self.now += 0.02
                yield rtc.AudioFrame(pcm[start : start + step].tobytes(), RATE, 1, step)

        async for frame in self.clock.listen(frames()):
            stream.push_frame(frame)
            await asyncio.sleep(0)

    async def read(self, stream: stt.RecognizeStream) -> None:
        async for event in stream:
            self.clock.hear(event)
            if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT:
                self.understood.put_nowait(event.alternatives[0].text)


def near(words: list[Any], speech: Speech, began: float) -> None:
    assert [word.text for word in words] == PHRASE.split()
    late = [
        abs(word.start - began - said.start_ms / 1000)
        for word, said in zip(words, speech.words, strict=True)
    ]
    assert median(late) < 0.08


@pytest.mark.parametrize("names", ["deepgram/nova-3", ["deepgram/nova-3", "deepgram/nova-2"]])
async def test_words_after_a_lost_connection(names: Any) -> None:
    speech = synthesize(PHRASE, CALLER_VOICE, RATE)
    said = np.concatenate(
        (np.zeros(round(BEFORE_S * RATE), np.int16), speech.pcm, np.zeros(RATE, np.int16))
    )
    said = said[: len(said) // 320 * 320]
    caller = ChatMessage(role="user", content=[PHRASE], metrics={"stopped_speaking_at": START})
    async with Providers() as providers, http_context.open(), asyncio.timeout(30):
        await providers.set_control(Control(deepgram=Deepgram(phrases=[PHRASE])))
        ear = Ear(providers, names)
        async with ear.stt.stream(conn_options=STT_OPTIONS) as stream:
            reading = asyncio.create_task(ear.read(stream))
            await ear.hear(stream, said)
            assert await ear.understood.get() == PHRASE
            near(ear.clock.turn_words(caller, PHRASE), speech, START + BEFORE_S)

            providers.control.deepgram.faults = [Fault(kind="drop", times=1)]
            lost = ear.now
            await ear.hear(stream, said)
            if isinstance(names, str):
                # What a single STT had taken when it failed is lost.
                async with asyncio.timeout(10):
                    while len(ear.plugins.origins) < 2:
                        await ear.hear(stream, np.zeros(320, np.int16))
                        await asyncio.sleep(0.05)
                lost = ear.now
                await ear.hear(stream, said)
            assert await ear.understood.get() == PHRASE
            near(ear.clock.turn_words(caller, PHRASE), speech, lost + BEFORE_S)
            reading.cancel()
        await ear.plugins.aclose()
