"""Records one call from its answer to its end. Nothing that goes wrong here touches the call."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from functools import partial
from math import inf
from typing import Any, Final, Protocol

import numpy as np
from livekit.agents.voice import io

from core.audio import Pcm
from core.jobs import CallBrief
from core.recordings.plan import RecordingPlan
from core.settings import Settings
from core.sound.arrivals import SOON_S
from recordings.spool import RecordingFile
from worker.endings import Cause
from worker.line import Line
from worker.privacy.gate import Gate, Span
from worker.privacy.silencer import Silencer
from worker.recording.mixer import Frames, Mixer
from worker.recording.resample import RATE
from worker.recording.voice_tap import VoiceTap
from worker.timing.call_clock import CallClock

log = logging.getLogger(__name__)

LAG_S: Final = 4.0
"""Audio is written this much later: by then it has been placed."""

_EVERY_S: Final = 1.0
_PIECE_MS: Final = 100  # of received audio; each piece costs the event loop some work
_HEAR_AGAIN_S: Final = 0.2  # after a track has ended, possibly to come back
_CLOSE_WITHIN_S: Final = 5.0
_SILENCE: Final = 10 * RATE  # frames of leading silence that are written at once


def recorder_of(
    brief: CallBrief,
    line: Line,
    settings: Settings,
    *,
    clock: CallClock,
    gate: Gate,
    post: Callable[[str, dict[str, Any]], object],
) -> Recorder | None:
    """Return the recorder of a call, or None if it is not to be recorded."""
    if brief.recording is None:
        return None
    directory = settings.data_dir / "spool" / "recordings"
    create = partial(RecordingFile.create, directory, brief.call_id, brief.recording)
    return Recorder(
        brief.recording,
        line,
        clock=clock,
        gate=gate,
        post=post,
        create=create,
        silencer=None if gate.redactor is None else gate.redactor.silencer,
    )


Hear = Callable[[int, int], AsyncGenerator[Pcm]]
"""Returns the audio of somebody on the line, at this rate and in pieces of at most so many ms."""


class File(Protocol):
    """A recording's file (recordings.spool.RecordingFile). Methods block, and raise OSError."""

    def append(self, frames: Frames, /) -> None: ...

    def close(self) -> None: ...


class Recorder:
    """Call ``speak`` before the answer, ``start`` at it, ``end`` at the end, and then ``finish``.

    ``join`` puts a human in the agent's place.
    ``create`` makes the file. It is called once something is there that may be kept.
    ``recording.*`` events are posted with ``post``. ``silencer`` is redaction's; None: no words are
    silenced.
    """

    def __init__(
        self,
        plan: RecordingPlan,
        line: Line,
        *,
        clock: CallClock,
        gate: Gate,
        post: Callable[[str, dict[str, Any]], object],
        create: Callable[[], File],
        silencer: Silencer | None = None,
    ) -> None:
        self._plan = plan
        self._line = line
        self._clock = clock
        self._gate = gate
        self._post = post
        self._create = create
        self._silencer = silencer
        self._mixer = Mixer(clock, line.rates.speech, self._silent)
        self._tap: VoiceTap | None = None
        self._holds: list[Span] = []
        self._file: File | None = None
        self._told = False
        self._joined = False
        self._over = asyncio.Event()
        self._until: float | None = None  # the end of the call
        self._hearing: list[asyncio.Task[None]] = []
        self._writing: asyncio.Task[None] | None = None

    def speak(self, sink: io.AudioOutput) -> io.AudioOutput:
        """Return an output that records the agent's voice and passes it on to ``sink``."""
        self._tap = VoiceTap(sink, self._played)
        return self._tap

    def start(self) -> None:
        """Begin to record. The call was answered."""
        self._gate.opened.append(self._begun)
        self._begun()
        self._line.report_sound(self._mixer.report)
        self._listen(self._line.hear, self._mixer.heard)
        self._writing = asyncio.create_task(self._write(), name="recording: write")

    def join(self, hear: Hear) -> None:
        """Record a human in the agent's place from now on, and take the caller off hold."""
        self._joined = True
        self._tap = None
        self.hold(False)
        self._listen(hear, self._mixer.heard_human)

    @property
    def may_go_on(self) -> bool:
        """True from the answer on, unless writing failed, or the caller did not consent."""
        runs = self._writing is not None and not self._over.is_set()
        return runs and not self._gate.is_shut_for("consent")

    async def stopped(self) -> None:
        """Wait until ``finish``, or until writing has failed."""
        await self._over.wait()

    def hold(self, on: bool) -> None:
        """Leave out everything while the caller is on hold."""
        now_ms = self._clock.now_ms()
        if on:
            self._holds.append((now_ms, None))
        elif self._holds and self._holds[-1][1] is None:
            self._holds[-1] = self._holds[-1][0], now_ms

    def end(self) -> None:
        """Nothing from now on is on the recording."""
        if self._until is None:
            self._until = time.time()

    async def finish(self, cause: Cause) -> None:
        """Write the rest, and close the file. Bounded; raises nothing.

        The last turns are on the record by now, so that redaction has silenced their words.
        """
        if self._writing is None or self._over.is_set():
            return
        self.end()
        if self._silencer is not None:
            self._silencer.close()
        self._over.set()
        await asyncio.wait({self._writing}, timeout=_CLOSE_WITHIN_S)
        if self._told:
            self._post("recording.stopped", {"reason": self._why(cause)})

    def _why(self, cause: Cause) -> str:
        if self._joined:
            return "worker_stopped" if cause == "worker_stopped" else "call_ended"
        return "transfer" if cause in _TRANSFERRED else "call_ended"

    def _begun(self) -> None:
        if self._gate.is_open and not self._told and not self._over.is_set():
            self._told = True
            self._post("recording.started", {"format": self._plan.format})

    def _silent(self) -> Iterable[Span]:
        return (*self._gate.spans(), *self._holds)

    def _played(self, left: float, pcm: Pcm, anew: bool) -> None:
        if self._tap is not None and self._writing is not None and not self._writing.done():
            self._mixer.played(left, pcm, anew)

    def _listen(self, hear: Hear, into: Callable[[Pcm, float], None]) -> None:
        task = asyncio.create_task(self._hear(hear, into), name="recording: hear")
        self._hearing.append(task)

    async def _hear(self, hear: Hear, into: Callable[[Pcm, float], None]) -> None:
        while True:
            try:
                async with aclosing(hear(self._line.rates.speech, _PIECE_MS)) as heard:
                    async for pcm in heard:
                        into(pcm, time.time())
            except Exception as error:
                log.warning("somebody is not recorded", exc_info=error)
            await asyncio.sleep(_HEAR_AGAIN_S)

    def _stop_hearing(self) -> None:
        for task in self._hearing:
            task.cancel()

    async def _write(self) -> None:
        try:
            await self._write_along()
            self._stop_hearing()
            await self._append(self._until or time.time(), rest=True)
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in _FULL
            log.error("the recording failed", exc_info=error)
            self._over.set()
            self._post("recording.failed", {"reason": "disk_full" if full else "error"})
        finally:
            self._stop_hearing()
            if self._file is not None:
                with suppress(OSError):  # what could be written is; the spool takes it from here
                    await asyncio.to_thread(self._file.close)

    async def _write_along(self) -> None:
        """Write a block every second until the recording is over."""
        loop = asyncio.get_running_loop()
        due = loop.time() + _EVERY_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._over.wait()
                    return
            late_s = loop.time() - due
            due = loop.time() + _EVERY_S
            # After a stall, what arrived meanwhile has to be heard first.
            if late_s < _EVERY_S / 2:
                await self._append(min(self._settled(), self._until or inf))

    def _settled(self) -> float:
        """Return until when (Unix seconds) everything is there, and known to be kept or not."""
        until = time.time() - LAG_S
        if self._silencer is None:
            return until
        assert self._clock.answered_at is not None
        return min(until, self._clock.answered_at + self._silencer.known_ms() / 1000)

    async def _append(self, until: float, *, rest: bool = False) -> None:
        """Write what was said and heard until that time (Unix seconds)."""
        assert self._clock.answered_at is not None
        if self._tap is not None:
            self._tap.settle(inf if rest else time.time() - SOON_S)
        self._mixer.settle(time.time(), rest=rest)
        redacted = () if self._silencer is None else self._silencer.spans()
        last = round((until - self._clock.answered_at) * RATE)
        # In pieces: before an agent that took over a call, there are hours of silence at once.
        while (end := min(last, self._mixer.taken + _SILENCE)) > self._mixer.taken:
            frames, keeps = self._mixer.take(end, redacted)
            if keeps or self._file is not None:
                await asyncio.to_thread(self._store, frames, self._mixer.taken - len(frames))

    def _store(self, frames: Frames, before: int) -> None:
        if self._file is None:
            self._file = self._create()
            for start in range(0, before, _SILENCE):
                self._file.append(np.zeros((min(_SILENCE, before - start), 2), np.int16))
        self._file.append(frames)


_TRANSFERRED: Final[set[Cause]] = {"referred", "handed_over", "transfer_ended"}
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
