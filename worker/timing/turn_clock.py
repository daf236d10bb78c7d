"""Times the turns of one conversation: takes what the session tells, and knows the audio."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable

import numpy as np
from livekit import rtc
from livekit.agents import FunctionToolsExecutedEvent
from livekit.agents.llm import ChatMessage
from livekit.agents.voice import io

from worker.timing.heard_audio import HeardAudio
from worker.timing.spoken_audio import Spoken, SpokenAudio
from worker.timing.turn_parts import TurnEnd, whole

_KEPT = 16  # of each kind; a turn has a few


class TurnClock:
    """``endpointing_s``: the silence that ends a turn. ``transport_ms`` is asked at every turn
    what the way to the caller and back takes; None: not known."""

    def __init__(
        self, endpointing_s: float, transport_ms: Callable[[], float | None] = lambda: None
    ) -> None:
        self._endpointing_s = endpointing_s
        self._transport_ms = transport_ms
        self._heard = HeardAudio()
        self._mouth: SpokenAudio | None = None
        self._quiet: deque[float] = deque(maxlen=_KEPT)
        self._finals: deque[float] = deque(maxlen=_KEPT)
        self._tools: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    async def listen(self, audio: AsyncIterable[rtc.AudioFrame]) -> AsyncIterator[rtc.AudioFrame]:
        """``audio`` as it is, noted on the way to the STT."""
        async for frame in audio:
            self._heard.push(np.frombuffer(frame.data, np.int16), frame.sample_rate, time.time())
            yield frame

    def speak(self, sink: io.AudioOutput) -> io.AudioOutput:
        """``sink``, with an ear in front of it."""
        self._mouth = SpokenAudio(sink)
        return self._mouth

    def quiet(self) -> None:
        """The voice activity detector says that the caller has stopped, now."""
        self._quiet.append(time.time())

    def understood(self) -> None:
        """A final transcript has come, now."""
        self._finals.append(time.time())

    def tools_ran(self, event: FunctionToolsExecutedEvent) -> None:
        """The session's word that tools have run."""
        began = min((call.created_at for call in event.function_calls), default=event.created_at)
        self._tools.append((began, event.created_at))

    def turn_end(self, message: ChatMessage) -> TurnEnd | None:
        """How ``message``, the caller's, ended; None when it was not spoken, or nobody knows."""
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

    def spoken(self, message: ChatMessage) -> Spoken | None:
        """The first audio of ``message``, the agent's."""
        began = message.metrics.get("started_speaking_at")
        if began is None or self._mouth is None:
            return None
        return self._mouth.find(began)

    def parts(self, end: TurnEnd, message: ChatMessage, spoken: Spoken) -> dict[str, float]:
        """The caller's wait for ``message``, ms; nothing where no voice has left or where the
        TTS does not tell when it was asked."""
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
