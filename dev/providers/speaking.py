"""One Cartesia context: it receives texts and sends audio and word timestamps, in order."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiohttp import web

from core.audio import Pcm, ulaw_encode
from dev.providers.clock import until
from dev.providers.context import HANG_S, Context, cut
from dev.providers.control import Fault
from dev.providers.g711 import alaw_encode
from dev.speech import Speech, Voice
from dev.speech.espeak import SpeechError


@dataclass(frozen=True)
class Format:
    encoding: str
    sample_rate: int


def encode(pcm: Pcm, format: Format) -> bytes:
    match format.encoding:
        case "pcm_mulaw":
            return ulaw_encode(pcm)
        case "pcm_alaw":
            return alaw_encode(pcm)
        case "pcm_f32le":
            return (pcm.astype("<f4") / 32768).tobytes()
    return pcm.astype("<i2").tobytes()


@dataclass(frozen=True)
class _Sentence:
    text: str
    speech: asyncio.Task[Speech | SpeechError]
    arrived: float


class Speaking:
    """The speech of a context. A sentence is synthesised while the one before is being sent."""

    def __init__(
        self,
        context: Context,
        request: web.Request,
        socket: web.WebSocketResponse,
        context_id: str,
        format: Format,
        *,
        timestamps: bool,
        fault: Fault | None,
    ) -> None:
        self._context = context
        self._request = request
        self._socket = socket
        self._context_id = context_id
        self._format = format
        self._timestamps = timestamps
        self._fault = fault
        self._tasks: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None
        self._queue: asyncio.Queue[_Sentence | bool] = asyncio.Queue()  # True: end, False: flush
        self._sent_samples = 0
        self._sent_messages = 0
        self._free_at = 0.0
        self._flushes = 0

    def start(self, tasks: asyncio.TaskGroup, on_done: Callable[[], object]) -> None:
        self._tasks = tasks
        self._task = tasks.create_task(self._run())
        self._task.add_done_callback(lambda _: on_done())

    def say(self, text: str, voice: Voice, arrived: float, *, last: bool, flush: bool) -> None:
        """Enqueue a text that came at ``arrived``; ``last`` ends the context after it."""
        assert self._tasks is not None
        if text.strip():
            made = self._tasks.create_task(self._make(text, voice))
            self._queue.put_nowait(_Sentence(text, made, arrived))
        if flush:
            self._queue.put_nowait(False)
        if last:
            self._queue.put_nowait(True)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _make(self, text: str, voice: Voice) -> Speech | SpeechError:
        # An error is returned: it ends this context, not the connection's task group.
        try:
            return await self._context.speak(text, voice, self._format.sample_rate)
        except SpeechError as error:
            return error

    async def _run(self) -> None:
        while (item := await self._queue.get()) is not True:
            if isinstance(item, _Sentence):
                speech = await item.speech
                if isinstance(speech, SpeechError):
                    reason = {"status_code": 400, "title": "Voice not found", "error": str(speech)}
                    await self._send("error", done=True, **reason)
                    return
                if not await self._send_sentence(item, speech):
                    return
            else:
                self._flushes += 1
                await self._send("flush_done", flush_done=True, flush_id=self._flushes)
        await self._send("done", done=True, status_code=200)

    async def _send_sentence(self, sentence: _Sentence, speech: Speech) -> bool:
        """Send a sentence's audio; return False if a fault ended the context."""
        settings = self._context.control.cartesia
        pcm = speech.pcm
        gap = 0
        if self._sent_samples and len(pcm):
            gap = int(settings.sentence_gap_ms * speech.sample_rate / 1000)
            pcm = np.concatenate([np.zeros(gap, np.int16), pcm])
        due = max(self._free_at, sentence.arrived + settings.first_byte_ms / 1000)
        origin_ms = (self._sent_samples + gap) * 1000 / speech.sample_rate
        late: list[float] = []
        pace = settings.pace(sentence.text)
        samples = max(1, int(speech.sample_rate * pace.chunk_ms / 1000))
        for start in range(0, len(pcm), samples):
            if await self._strike():
                return False
            made = start / speech.sample_rate / pace.speed if pace.speed else 0.0
            self._free_at = due + made
            late.append(await until(self._free_at))
            data = base64.b64encode(encode(pcm[start : start + samples], self._format)).decode()
            await self._send("chunk", data=data)
            self._sent_messages += 1
            if start == 0 and self._timestamps:
                await self._send("timestamps", word_timestamps=_timestamps(speech, origin_ms))
        self._sent_samples += len(pcm)
        self._context.record.add(
            "cartesia",
            "sentence",
            context_id=self._context_id,
            text=sentence.text,
            audio_ms=speech.duration_ms,
            first_byte_late_ms=late[0] if late else 0.0,
            late_ms=max(late, default=0.0),
        )
        return True

    async def _strike(self) -> bool:
        """Apply the fault if its message has come; return True if it ends the context."""
        if self._fault is None or self._sent_messages != self._fault.after:
            return False
        if self._fault.kind == "hang":
            await asyncio.sleep(HANG_S)
        if self._fault.kind == "drop":
            cut(self._request)
            return True
        await self._socket.send_str('{"type":"chunk","data":"')
        self._sent_messages += 1
        return False

    async def _send(self, kind: str, **fields: Any) -> None:
        message = {"type": kind, "context_id": self._context_id, "status_code": 206, "done": False}
        await self._socket.send_json({**message, **fields})


def _timestamps(speech: Speech, origin_ms: float) -> dict[str, list[Any]]:
    return {
        "words": [word.word for word in speech.words],
        "start": [round((origin_ms + word.start_ms) / 1000, 4) for word in speech.words],
        "end": [round((origin_ms + word.end_ms) / 1000, 4) for word in speech.words],
    }
