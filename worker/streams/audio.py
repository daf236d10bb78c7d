"""The session's audio on a stream: what the caller says, and the agent's voice."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

import numpy as np
from livekit import rtc
from livekit.agents.voice import io

from core.audio import Pcm
from worker.streams.heard_text import HeardText
from worker.streams.playout import Finished, Playout, Progressed, Report, Started, Write
from worker.streams.wire import Wire

_FRAME_S = 0.02
# Kept for a session that is slow to read; more is older than anybody wants to hear.
_KEPT_FRAMES = 100


class StreamInput(io.AudioInput):
    """The far end's audio, in frames of 20 ms. Frames that nobody listens to are dropped.

    With ``keeps``, the last 2 s before the session listens are kept for it.
    """

    def __init__(self, rate: int, *, keeps: bool = False) -> None:
        super().__init__(label="stream")
        self._keeps = keeps
        self._rate = rate
        self._size = round(rate * _FRAME_S) * 2  # bytes
        self._rest = b""
        self._frames: deque[rtc.AudioFrame] = deque(maxlen=_KEPT_FRAMES)
        self._arrived = asyncio.Event()
        self._attached = False
        self._listeners: set[asyncio.Queue[Pcm | None]] = set()
        self._closed = False

    def push(self, pcm: bytes) -> None:
        """Add 16-bit samples at ``rate``."""
        pcm = self._rest + pcm if self._rest else pcm
        whole = len(pcm) - len(pcm) % self._size
        self._rest = pcm[whole:]
        for start in range(0, whole, self._size):
            part = pcm[start : start + self._size]
            if self._attached or self._keeps:
                self._frames.append(rtc.AudioFrame(part, self._rate, 1, self._size // 2))
            for listener in self._listeners:
                listener.put_nowait(np.frombuffer(part, np.int16))
        self._arrived.set()

    def fall_silent(self, seconds: float) -> None:
        """Add silence for the session only, so that words before a gap are understood as ended."""
        self._rest = b""
        if self._attached:
            for _ in range(round(seconds / _FRAME_S)):
                silence = rtc.AudioFrame(bytes(self._size), self._rate, 1, self._size // 2)
                self._frames.append(silence)
            self._arrived.set()

    async def listen(self) -> AsyncGenerator[Pcm]:
        """Yield the audio from now on, beside the session, until ``close``."""
        frames: asyncio.Queue[Pcm | None] = asyncio.Queue()
        self._listeners.add(frames)
        try:
            while not self._closed and (pcm := await frames.get()) is not None:
                yield pcm
        finally:
            self._listeners.discard(frames)

    def close(self) -> None:
        """End what ``listen`` yields."""
        self._closed = True
        for listener in self._listeners:
            listener.put_nowait(None)

    def on_attached(self) -> None:
        self._attached = True

    def on_detached(self) -> None:
        self._attached = self._keeps = False
        self._frames.clear()

    async def __anext__(self) -> rtc.AudioFrame:
        while not self._frames:
            self._arrived.clear()
            await self._arrived.wait()
        return self._frames.popleft()


class StreamOutput(io.AudioOutput):
    """The agent's voice, sent a little ahead of what the far end has heard (Playout)."""

    def __init__(
        self,
        wire: Wire,
        text: HeardText,
        write: Callable[[Write], None],
        on_heard: Callable[[], None],
        *,
        epoch: int = 0,
    ) -> None:
        """``text`` is what is spoken. ``on_heard`` is called when more of it was heard.

        ``epoch``: of the session's agent, whose marks are told from a former one's.
        """
        super().__init__(
            label="stream",
            sample_rate=wire.rates.voice,
            capabilities=io.AudioOutputCapabilities(pause=True),
        )
        self._wire = wire
        self._text = text
        self._write = write
        self._on_heard = on_heard
        self._pushed = 0
        self._whole_s: float | None = None
        self._loop = asyncio.get_running_loop()
        width = len(wire.silence)
        self._bytes_per_s = wire.rates.voice * width
        marks = f"a{epoch}." if epoch else ""
        self._playout = Playout(self._bytes_per_s, wire.silence, echoes=wire.echoes, marks=marks)
        self._timer: asyncio.TimerHandle | None = None

    drops_when_paused = True  # see worker._private.drop_queued

    @property
    def heard_s(self) -> float:
        """How much of the current speech was heard, in seconds."""
        return self._playout.heard_s(self._loop.time())

    def said(self, heard_s: float) -> str:
        """Return the words in so much of the current speech."""
        return self._text.until(heard_s, self._whole_s)

    def playing(self) -> tuple[float, float, float] | None:
        """Return the stretch that is not reported yet; see worker._private.playing."""
        run = self._playout.playing(self._loop.time())
        return None if run is None else self._left(run)

    @property
    def delay_ms(self) -> float | None:
        """The delay between here and the far end, both directions together; None if unknown."""
        return None if self._playout.trip_s is None else self._playout.trip_s * 1000

    @property
    def stalled(self) -> bool:
        """True if the far end should have echoed a mark long ago."""
        return self._playout.stalled(self._loop.time())

    def attach(self) -> None:
        """A socket has come; go on from the heard position."""
        self._playout.attach(self._loop.time())
        self._pump()

    def detach(self) -> None:
        """The socket is lost, and all that its far end has not played."""
        self._playout.detach(self._loop.time())
        self._pump()

    def echoed(self, mark: str) -> None:
        self._playout.echoed(mark, self._loop.time())
        self._pump()

    def close(self) -> None:
        """Send nothing any more."""
        self._playout.clear(self._loop.time())
        self._pump()
        self._playout.detach(self._loop.time())
        if self._timer is not None:
            self._timer.cancel()

    # The session's side

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        audio = self._wire.encode(frame.data.cast("B"))
        self._pushed += len(audio)
        self._playout.push(audio)
        self._pump()

    def flush(self) -> None:
        super().flush()
        self._whole_s = self._pushed / self._bytes_per_s
        self._playout.flush()
        self._pump()

    def clear_buffer(self) -> None:
        self._playout.clear(self._loop.time())
        self._pump()

    def pause(self) -> None:
        super().pause()
        self._playout.pause(self._loop.time())
        self._pump()

    def resume(self) -> None:
        super().resume()
        self._playout.resume(self._loop.time())
        self._pump()

    def _pump(self) -> None:
        """Write what is due, report what has happened, and come back when there is more."""
        now = self._loop.time()
        for write in self._playout.due(now):
            self._write(write)
        for report in self._playout.reports(now):
            self._report(report, now)
        if self._pushed:
            self._on_heard()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := self._playout.next_at(now)) is not None:
            self._timer = self._loop.call_at(at, self._pump)

    def _report(self, report: Report, now: float) -> None:
        unix = time.time() - now
        match report:
            case Started(at):
                self.on_playback_started(created_at=at + unix)
            case Progressed():
                started_at, offset, duration = self._left(report)
                self.on_playback_progressed(started_at=started_at, offset=offset, duration=duration)
            case Finished(heard_s, interrupted):
                said = self.said(heard_s) if interrupted else None
                self._pushed, self._whole_s = 0, None
                self._text.clear()
                self.on_playback_finished(
                    playback_position=heard_s,
                    interrupted=interrupted,
                    synchronized_transcript=said,
                )

    def _left(self, run: Progressed) -> tuple[float, float, float]:
        """Return when the stretch began to leave (Unix seconds), its offset and its duration.

        What an echo dates was played half of the delay before, and left as long before that.
        """
        later_s = (self._playout.trip_s or 0.0) if run.echoed else 0.0
        started_at = run.started_at + time.time() - self._loop.time() - later_s
        return started_at, run.offset_s, run.duration_s
