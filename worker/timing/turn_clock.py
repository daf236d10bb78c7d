"""Times the turns of one conversation, from the session's events and from the audio."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Final, TypeAlias

import numpy as np
from livekit import rtc
from livekit.agents import FunctionToolsExecutedEvent, stt
from livekit.agents.llm import ChatMessage
from livekit.agents.utils import is_given
from livekit.agents.voice import io

from worker.timing.first_sound import is_sound
from worker.timing.heard_audio import HeardAudio
from worker.timing.spoken_audio import Spoken, SpokenAudio
from worker.timing.timed_words import Timed, timed_words
from worker.timing.turn_parts import TurnEnd, whole

POSITION: Final = "switchroom.position"
"""An audio frame's user data: how many seconds of audio went to the STT before it."""

Origins: TypeAlias = dict[float, float]
"""For each connection of an STT, its ``start_time_offset`` and the position of its first frame."""

_KEPT = 16  # of each kind; a turn has a few
_KEPT_WORDS = 20_000  # more than anybody says in a turn
_SAME_START_S = 0.5


class TurnClock:
    """The clock of one conversation.

    ``endpointing_s`` is the silence that ends a turn. ``transport_ms`` is called at every turn and
    returns the round-trip audio delay to the caller; None if unknown. ``origins`` says where in the
    audio the STT's connections began.
    """

    def __init__(
        self,
        endpointing_s: float,
        transport_ms: Callable[[], float | None] = lambda: None,
        *,
        origins: Origins | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.sounded = asyncio.Event()
        """Set by the first sound from the far end."""
        self._clock = clock
        self._origins = {} if origins is None else origins
        self._endpointing_s = endpointing_s
        self._transport_ms = transport_ms
        self._heard = HeardAudio()
        self._mouth: SpokenAudio | None = None
        self._words: deque[Timed] = deque(maxlen=_KEPT_WORDS)
        self._starts: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._quiet: deque[float] = deque(maxlen=_KEPT)
        self._finals: deque[float] = deque(maxlen=_KEPT)
        self._tools: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    async def listen(self, audio: AsyncIterable[rtc.AudioFrame]) -> AsyncIterator[rtc.AudioFrame]:
        """Yield ``audio`` unchanged on its way to the STT, and record it."""
        async for frame in audio:
            pcm = np.frombuffer(frame.data, np.int16)
            if not self.sounded.is_set() and is_sound(pcm):
                self.sounded.set()
            frame.userdata[POSITION] = self._heard.push(pcm, frame.sample_rate, self._clock())
            yield frame

    def hear(self, event: stt.SpeechEvent) -> None:
        """Note the words of a final transcript, which has just arrived."""
        if event.type is not stt.SpeechEventType.FINAL_TRANSCRIPT or not event.alternatives:
            return
        for word in event.alternatives[0].words or []:
            if not is_given(word.start_time_offset):
                continue
            origin = self._origins.get(word.start_time_offset)
            if origin is None or not is_given(word.start_time) or not is_given(word.end_time):
                continue
            moved = origin - word.start_time_offset
            start = self._heard.arrived(word.start_time + moved)
            if start is not None:
                end = self._heard.arrived(word.end_time + moved) or self._clock()
                self._words.append(Timed(word, start, max(start, end)))

    def speak(self, sink: io.AudioOutput) -> io.AudioOutput:
        """Return an output that records the audio and passes it on to ``sink``."""
        self._mouth = SpokenAudio(sink, clock=self._clock)
        return self._mouth

    def loud(self, vad_start: float) -> None:
        """Note that the voice activity detector has just reported a start of speech."""
        self._starts.append((vad_start, self._heard.speech_start(vad_start)))

    def quiet(self) -> None:
        """Note that the voice activity detector has just reported the end of speech."""
        self._quiet.append(self._clock())

    def understood(self) -> None:
        """Note that a final transcript has just arrived."""
        self._finals.append(self._clock())

    def tools_ran(self, event: FunctionToolsExecutedEvent) -> None:
        """Note when tools have run, from the session's event."""
        began = min((call.created_at for call in event.function_calls), default=event.created_at)
        self._tools.append((began, event.created_at))

    def turn_start(self, message: ChatMessage) -> float | None:
        """Return when the caller's ``message`` began; None if it was not spoken."""
        vad_start = message.metrics.get("started_speaking_at")
        if vad_start is None:
            return None
        near = [start for vad, start in self._starts if abs(vad - vad_start) < _SAME_START_S]
        return near[0] if near else vad_start

    def turn_words(self, message: ChatMessage, text: str) -> list[Timed]:
        """Return when the words of the caller's ``message`` arrived; empty if that is unknown."""
        if "stopped_speaking_at" not in message.metrics:
            return []
        words = timed_words(text, tuple(self._words))
        self._words.clear()
        return words

    def turn_end(self, message: ChatMessage) -> TurnEnd | None:
        """Return how the caller's ``message`` ended; None if it was not spoken or has no times."""
        vad_end = message.metrics.get("stopped_speaking_at")
        waited = message.metrics.get("end_of_turn_delay")
        if vad_end is None or waited is None:
            return None
        decided = vad_end + waited
        return TurnEnd(
            speech_end=self._heard.speech_end(vad_end=vad_end, before=decided),
            quiet=max(vad_end + self._endpointing_s, _last(self._quiet, decided) or 0.0),
            final=_last(self._finals, decided),
            decided=decided,
        )

    def spoken(self, message: ChatMessage) -> list[Spoken]:
        """Return the segments of the agent's ``message``; empty if its first one is unknown."""
        began = message.metrics.get("started_speaking_at")
        if began is None or self._mouth is None:
            return []
        return self._mouth.find(began, message.metrics.get("stopped_speaking_at", began))

    def parts(self, end: TurnEnd, message: ChatMessage, spoken: Spoken) -> dict[str, float]:
        """Return the parts (ms) of the caller's wait for ``message``.

        Empty if no voice has left the worker, or if the TTS does not report when it got its text.
        """
        text = spoken.text
        if text is None and (first_byte := message.metrics.get("tts_node_ttfb")) is not None:
            text = spoken.captured - first_byte
        if text is None or spoken.voiced is None:
            return {}
        return whole(
            end,
            text=text,
            voiced=spoken.voiced,
            tools=self._tools,
            transport_ms=self._transport_ms(),
        )


def _last(times: deque[float], before: float) -> float | None:
    return max((at for at in times if at <= before), default=None)
