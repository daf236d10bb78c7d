"""A line with the test as its far end: no room, no LiveKit, no phone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

import numpy as np
from livekit import rtc
from livekit.agents import Agent, AgentSession, BackgroundAudioPlayer
from livekit.agents.voice import io

from core.audio import Pcm
from core.jobs import CallBrief
from core.sound.reports import SoundReport
from core.transfers import TransferResult
from dev.speech import CALLER_VOICE, synthesize
from worker.line import Consultation, Listener, NotSupported, Rates

RATE = 16_000
_FRAME = RATE // 50
_SILENCE_S = 1.5  # after the words, so that the session detects their end


class _Ear(io.AudioInput):
    """The far end's speech, which the session reads faster than real time."""

    def __init__(self) -> None:
        super().__init__(label="scripted")
        self._frames: asyncio.Queue[rtc.AudioFrame] = asyncio.Queue()

    def say(self, text: str) -> None:
        words = synthesize(text, CALLER_VOICE, RATE).pcm
        pcm = np.concatenate([words, np.zeros(int(_SILENCE_S * RATE), np.int16)])
        for start in range(0, len(pcm) - _FRAME + 1, _FRAME):
            frame = pcm[start : start + _FRAME].tobytes()
            self._frames.put_nowait(rtc.AudioFrame(frame, RATE, 1, _FRAME))

    async def __anext__(self) -> rtc.AudioFrame:
        frame = await self._frames.get()
        await asyncio.sleep(0.005)
        return frame


class _Mouth(io.AudioOutput):
    """Plays everything, instantly."""

    def __init__(self) -> None:
        super().__init__(label="scripted", capabilities=io.AudioOutputCapabilities(pause=True))
        self.played_s = 0.0
        self._segment_s = 0.0
        self._began = 0.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._segment_s:
            self._began = time.time()
            self.on_playback_started(created_at=self._began)
        self._segment_s += frame.duration

    def flush(self) -> None:
        super().flush()
        self._finish(interrupted=False)

    def clear_buffer(self) -> None:
        self._finish(interrupted=True)

    def _finish(self, *, interrupted: bool) -> None:
        played_s, self._segment_s = self._segment_s, 0.0
        if played_s:
            self.played_s += played_s
            self.on_playback_progressed(started_at=self._began, offset=0.0, duration=played_s)
            self.on_playback_finished(playback_position=played_s, interrupted=interrupted)


class ScriptedLine:
    """A worker.line.Line. ``did`` lists the worker's requests, in order."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.pressed = ""
        self.delay_ms: float | None = 40.0
        self.usual_delay_ms = 40.0
        self.hidden_delay_ms = 0.0, 0.0
        self._mouth = _Mouth()
        self._ear = _Ear()
        self._listener: Listener | None = None
        self._started = asyncio.Event()
        self._joined = asyncio.Event()
        self._answered = asyncio.Event()
        self.present = False
        self.rates = Rates(speech=RATE, voice=24_000)

    # --- what the test does

    @property
    def heard_s(self) -> float:
        """Seconds of the agent's speech that the far end has heard."""
        return self._mouth.played_s

    async def answers(self) -> None:
        """Ring and answer, once the agent's session has started."""
        await self._started.wait()
        assert self._listener is not None
        self.present = True
        self._joined.set()
        self._listener.ringing()
        self._answered.set()
        self._listener.answered()

    async def goes_on(self) -> None:
        """Be in the call already when the agent's session starts."""
        await self._started.wait()
        assert self._listener is not None
        self.present = True
        self._joined.set()
        self._answered.set()
        self._listener.answered()

    def says(self, text: str) -> None:
        self._ear.say(text)

    def types(self, keys: str) -> None:
        assert self._listener is not None
        for key in keys:
            self._listener.key(key)

    def hangs_up(self) -> None:
        assert self._listener is not None
        answered = self._answered.is_set()
        self.present = False
        self._listener.left("caller_hung_up" if answered else "caller_gave_up", "by the script")

    def breaks(self) -> None:
        assert self._listener is not None
        self._listener.lost("media_lost", "by the script")

    # --- what the worker asks

    async def connect(self, listener: Listener) -> None:
        self.did.append("connect")
        self._listener = listener

    def taken_over(self) -> None:
        assert self._listener is not None
        self._listener.lost("agent_replaced", "by the script")

    def meet(self, brief: CallBrief) -> None:
        self.did.append(f"meet {brief.participant_identity}")

    async def start(self, session: AgentSession[None], agent: Agent) -> None:
        self.did.append("start")
        session.input.audio = self._ear
        session.output.audio = self._mouth
        await session.start(agent)
        self._started.set()

    async def joined(self) -> None:
        await self._joined.wait()

    async def answered(self) -> None:
        await self._answered.wait()

    async def hear(self, rate: int, piece_ms: int = 20) -> AsyncGenerator[Pcm]:
        return
        yield

    def report_sound(self, to: Callable[[SoundReport], None]) -> None:
        self.reports = to

    async def accompany(self, player: BackgroundAudioPlayer) -> None:
        raise NotSupported("ambient sound")

    async def press(self, key: str) -> None:
        self.pressed += key

    async def refer(self, ask: Callable[[], Awaitable[TransferResult]]) -> TransferResult:
        raise NotSupported("a transfer")

    def consult(
        self,
        brief: CallBrief,
        transfer_id: str,
        *,
        recorded: bool,
        on_connected: Callable[[], None],
        on_left: Callable[[str], None],
    ) -> Consultation:
        raise NotSupported("a transfer")

    async def dismiss(self, transfer_id: str) -> None:
        self.did.append(f"dismiss {transfer_id}")

    async def drain(self) -> None:
        self.did.append("drain")

    async def hang_up(self, *, told: bool) -> None:
        self.did.append(f"hang up, told: {told}")
        self.present = False

    async def fall_silent(self) -> None:
        self.did.append("fall silent")

    async def leave(self) -> None:
        self.did.append("leave")
