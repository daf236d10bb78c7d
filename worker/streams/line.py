"""The stream line: the far end is on a WebSocket, which may be lost and replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
from livekit.agents import Agent, AgentSession, BackgroundAudioPlayer

from core.audio import Pcm
from core.jobs import CallBrief
from core.models import CallEvent
from core.recordings.command import Command
from core.sound.reports import SoundReport
from core.streams.messages import GRACE_S, LEAVES, REPLACED, Attach
from core.transfers import TransferResult
from worker.endings import Cause
from worker.line import Consultation, Listener, NotSupported, Rates
from worker.streams.allowance import Allowance
from worker.streams.audio import StreamInput, StreamOutput
from worker.streams.heard_text import HeardText
from worker.streams.link import Link
from worker.streams.messages import Malformed
from worker.streams.narration import Captions, narrate
from worker.streams.playout import Clear, Send, Write
from worker.streams.tones import tone
from worker.streams.wire import Frame, Wire

log = logging.getLogger(__name__)

_OVER, _BAD, _STALLED = 1000, 1007, 1013
# Malformed frames that a socket may send before it is closed.
_BAD_FRAMES = 20
# The VAD ends an utterance after 250 ms of silence at most, and smooths over as much again.
_GAP_S = 0.6
_USUAL_DELAY_MS = 40.0
_DRAIN_WITHIN_S = 3.0
_START_WITHIN_S = 10.0
_CHECK_EVERY_S = 1.0


async def _whole(start: Coroutine[Any, Any, object]) -> None:
    """Wait for a session's start, to its end even if this is cancelled.

    livekit-agents does not close what it has begun of a start that is cancelled half-way: tasks,
    and the connection to the STT. In a job process they end with the process.
    """
    starting = asyncio.ensure_future(start)
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait({starting}, timeout=_START_WITHIN_S)
        raise


def _allowances() -> tuple[Allowance, Allowance]:
    """Return those of frames, and of seconds of audio.

    A client sends 50 frames of audio and up to 20 marks a second. Gaps that are filled with silence
    count as audio, too.
    """
    return Allowance(per_s=150, burst=1500), Allowance(per_s=1.1, burst=10.0)


class StreamLine:
    """A worker.line.Line. ``attach`` and ``detach`` follow the sockets of the session."""

    def __init__(self, wire: Wire, *, grace_s: float = GRACE_S, epoch: int = 0) -> None:
        """``grace_s``: how long the session waits for another socket. ``epoch``: of its agent."""
        self._wire = wire
        self._grace_s = grace_s
        self._text = HeardText()
        self._captions = Captions(self.tell)
        # The caller may be in the middle of a sentence when another agent takes over.
        self._input = StreamInput(wire.rates.speech, keeps=epoch > 0)
        self._output = StreamOutput(wire, self._text, self._write, self._caption, epoch=epoch)
        self._listener: Listener | None = None
        self._link: Link | None = None
        self._bad_frames = 0
        self._frames, self._audio_s = _allowances()
        self._waiting: asyncio.TimerHandle | None = None
        self._checking: asyncio.TimerHandle | None = None
        self._departure: tuple[Cause, str] | None = None
        self._ended: str | None = None  # why, as the record says
        self._started = asyncio.Event()
        self._answered = asyncio.Event()
        self._referring = False
        self._gone = False

    # --- the sockets

    def attach(self, link: Link, attach: Attach) -> None:
        """Use this socket, in place of an older one."""
        if self._gone:
            return link.close(_OVER, "the call is over")
        if self._link is not None:
            self._link.close(REPLACED, "another socket took over")
            self._output.detach()
        self._stop_waiting()
        self._link, self._bad_frames = link, 0
        self._frames, self._audio_s = _allowances()
        link.send(self._wire.attached(attach))
        self._output.attach()
        self._check()
        self._begin()

    def detach(self, link: Link, *, left: bool) -> bool:
        """This socket is closed. ``left``: its client has closed it, and does not come back.

        Return True if the session waits for another socket.
        """
        if link is not self._link:
            return False
        self._link = None
        self._output.detach()
        if self._gone:
            return False
        if left:
            self.hung_up("socket closed")
            return False
        log.info("socket lost, waiting for another", extra={"seconds": self._grace_s})
        self._input.fall_silent(_GAP_S)
        self._wait()
        return True

    def receive(self, frame: Frame) -> None:
        """Take a frame from the socket."""
        try:
            if not self._frames.take(1, asyncio.get_running_loop().time()):
                raise Malformed("too many frames")
            self._wire.receive(frame, self)
        except Malformed as bad:
            self._bad_frames += 1
            self.tell("error", code="MALFORMED", message=str(bad))
            if self._link is not None and self._bad_frames > _BAD_FRAMES:
                log.warning("too many malformed frames", extra={"problem": str(bad)})
                self._link.close(_BAD, "too many malformed frames")

    def remove(self, detail: str) -> None:
        """End the call from outside: the API hangs up."""
        self._leave("removed" if self._answered.is_set() else "ring_removed", detail)

    def taken_over(self) -> None:
        """Another agent has the session: nothing more is heard, said or sent."""
        if self._gone:
            return
        self._gone = True
        cause: Cause = "agent_replaced"
        detail = "another agent has the session"
        self._departure = cause, detail
        self._stop_waiting()
        self._output.close()
        if self._link is not None:
            self._link.close(LEAVES, detail)
            self._link = None
        if self._listener is not None:
            self._listener.lost(cause, detail)

    def commanded(self, command: Command) -> bool:
        """Pass on a command of the API's; False: the call has not begun, or is over."""
        if self._speaking is None:
            return False
        self._speaking.commanded(command)
        return True

    def reported(self, event: CallEvent) -> None:
        """Keep how the call ended; ``leave`` tells the far end, as the last event."""
        if event.type == "call.ended":
            self._ended = event.data["reason"]

    def tell(self, type: str, **data: Any) -> None:
        """Tell the far end of an event, if its protocol has such."""
        frame = self._wire.event(type, data)
        if frame is not None and self._link is not None:
            self._link.send([frame])

    def _write(self, write: Write) -> None:
        if self._link is not None:
            said = self._output.said(write.heard_s) if isinstance(write, Clear) else ""
            self._link.send([self._wire.media(write, said)])

    def _caption(self) -> None:
        if self._wire.captions:
            self._captions.show(self._output.said(self._output.heard_s))

    # --- what the far end sends (wire.FarEnd)

    def heard(self, pcm: bytes) -> None:
        seconds = len(pcm) / (2 * self._wire.rates.speech)
        if not self._audio_s.take(seconds, asyncio.get_running_loop().time()):
            raise Malformed("audio faster than real time")
        self._input.push(pcm)

    def echoed(self, mark: str) -> None:
        self._output.echoed(mark)

    def key(self, key: str) -> None:
        if self._speaking is not None:
            self._speaking.key(key)

    def typed(self, text: str) -> None:
        if self._speaking is not None:
            self._speaking.typed(text)

    def interrupted(self) -> None:
        if self._speaking is not None:
            self._speaking.interrupted()

    def hung_up(self, detail: str) -> None:
        # During a transfer the far end leaves to be referred; the gateway knows the outcome.
        if not self._referring:
            answered = self._answered.is_set()
            self._leave("caller_hung_up" if answered else "caller_gave_up", detail)

    @property
    def _speaking(self) -> Listener | None:
        return self._listener if self._answered.is_set() and not self._gone else None

    # --- worker.line.Line

    @property
    def rates(self) -> Rates:
        return self._wire.rates

    async def connect(self, listener: Listener) -> None:
        self._listener = listener
        if self._departure is None:
            return
        cause, detail = self._departure
        if cause == "agent_replaced":
            listener.lost(cause, detail)
        else:
            listener.left(cause, detail)

    def meet(self, brief: CallBrief) -> None:
        pass

    async def start(self, session: AgentSession[None], agent: Agent) -> None:
        session.input.audio = self._input
        session.output.audio = self._output
        session.output.transcription = self._text
        narrate(session, self.tell)
        await _whole(session.start(agent))
        self._started.set()
        self._begin()

    async def joined(self) -> None:
        """A session begins with its first socket. If that is lost meanwhile, another may come."""

    async def answered(self) -> None:
        await self._answered.wait()

    @property
    def present(self) -> bool:
        return self._answered.is_set() and not self._gone

    @property
    def delay_ms(self) -> float | None:
        return self._output.delay_ms

    @property
    def usual_delay_ms(self) -> float:
        return _USUAL_DELAY_MS

    @property
    def hidden_delay_ms(self) -> tuple[float, float]:
        return 0.0, 0.0

    async def hear(self, rate: int, piece_ms: int = 20) -> AsyncGenerator[Pcm]:
        own = self._wire.rates.speech
        async for pcm in self._input.listen():
            # Only ever from 16 to 8 kHz: the mean of two samples is enough to find a tone.
            yield pcm if own == rate else pcm.reshape(-1, own // rate).mean(1).astype(np.int16)

    def report_sound(self, to: Callable[[SoundReport], None]) -> None:
        """The client's marks tell what it plays, and when."""

    async def accompany(self, player: BackgroundAudioPlayer) -> None:
        raise NotSupported("ambient sound")

    async def press(self, key: str) -> None:
        if not self._wire.plays_keys:
            raise NotSupported("sending keys")
        pcm = tone(key, self._wire.rates.voice)
        self._write(Send(self._wire.encode(pcm.tobytes())))
        await asyncio.sleep(len(pcm) / self._wire.rates.voice)

    async def refer(self, ask: Callable[[], Awaitable[TransferResult]]) -> TransferResult:
        if not self._wire.transfers:
            raise NotSupported("a transfer")
        self._referring = True
        try:
            return await ask()
        finally:
            self._referring = False
            if self._link is None:
                self._wait()

    def consult(
        self,
        brief: CallBrief,
        transfer_id: str,
        *,
        recorded: bool,
        on_connected: Callable[[], None],
        on_left: Callable[[str], None],
    ) -> Consultation:
        raise NotSupported("a warm transfer")

    async def dismiss(self, transfer_id: str) -> None:
        """Nobody was consulted on such a line."""

    async def drain(self) -> None:
        if self._link is None:
            return
        try:
            async with asyncio.timeout(_DRAIN_WITHIN_S):
                await self._output.wait_for_playout()
        except TimeoutError:
            log.warning("the last words were not heard in time")

    async def hang_up(self, *, told: bool) -> None:
        self._gone = True

    async def fall_silent(self) -> None:
        self._output.close()

    async def leave(self) -> None:
        self._gone = True
        self._stop_waiting()
        self._stop_checking()
        self._output.close()
        self._input.close()
        if self._ended is not None:
            self.tell("ended", reason=self._ended)
        if self._link is not None and self._ended is not None:
            self._link.close(_OVER, "the call is over")
        elif self._link is not None:
            self._link.close(LEAVES, "this agent leaves")

    # --- states

    def _begin(self) -> None:
        """The far end hears the agent once there are a socket and a session."""
        if self._started.is_set() and self._link is not None and not self._answered.is_set():
            assert self._listener is not None
            self._listener.answered()
            self._answered.set()

    def _leave(self, cause: Cause, detail: str) -> None:
        if self._gone:
            return
        self._gone = True
        self._departure = cause, detail
        self._stop_waiting()
        if self._listener is not None:
            self._listener.left(cause, detail)

    def _check(self) -> None:
        """Close a socket whose far end plays nothing: it echoes no marks, and may send nothing."""
        if self._link is not None and self._output.stalled:
            self._link.close(_STALLED, "marks are not echoed")
        self._stop_checking()
        loop = asyncio.get_running_loop()
        self._checking = loop.call_later(_CHECK_EVERY_S, self._check)

    def _stop_checking(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None

    def _wait(self) -> None:
        if self._gone or self._referring:
            return
        self._stop_waiting()
        loop = asyncio.get_running_loop()
        self._waiting = loop.call_later(self._grace_s, self._leave, "leg_lost", "no other socket")

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
