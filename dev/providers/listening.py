"""One Deepgram stream: it receives audio and sends recognised speech."""

from __future__ import annotations

import asyncio
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from core.audio import Pcm
from dev.providers.clock import until
from dev.providers.context import Context, cut
from dev.providers.control import Deepgram
from dev.providers.listen_query import Query
from dev.providers.segmenter import Ended, Paused, Resumed, Segmenter, Started
from dev.speech import Recognition
from dev.speech.text import spoken_words


@dataclass(frozen=True)
class _Utterance:
    """A final result that is due: its recognition, its position and its deadline."""

    recognition: asyncio.Task[Recognition | None]
    from_ms: float
    speech_end_ms: float
    due: float
    endpoint: bool
    finalized: bool


@dataclass(frozen=True)
class _Gap:
    """An UtteranceEnd that is due."""

    last_word_end_ms: float


class Listening:
    """Answers a stream's audio in order: SpeechStarted, interim results, the final, UtteranceEnd.

    Recognition of an utterance starts at its first pause, so it is done when the endpointing
    and the configured delay have passed.
    """

    def __init__(
        self,
        context: Context,
        request: web.Request,
        socket: web.WebSocketResponse,
        request_id: str,
        query: Query,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._context = context
        self._request = request
        self._socket = socket
        self._request_id = request_id
        self._query = query
        self._tasks = tasks
        self._running: set[asyncio.Task[Any]] = set()
        endpointing = query.endpointing_ms or 0
        self._segmenter = Segmenter(
            query.sample_rate,
            max(endpointing, self._settings.min_silence_ms),
            self._settings.speech_dbfs,
        )
        self._results: asyncio.Queue[_Utterance | _Gap | None] = asyncio.Queue()
        self._guess: asyncio.Task[Recognition | None] | None = None
        self._interim: asyncio.Task[None] | None = None
        self._interim_at_ms = 0.0
        self._utterance = 0
        self._gap_from_ms: float | None = None
        self._silent = False
        self._owed = 0
        self._answering = self._start(self._answer())

    async def hear(self, data: bytes, arrived: float) -> None:
        """Take the next piece of audio, which came at monotonic time ``arrived``."""
        for event in self._segmenter.feed(self._query.decode(data)):
            match event:
                case Started():
                    await self._started(event)
                case Paused():
                    self._guess = self._recognize(event.audio)
                case Resumed():
                    self._forget_guess()
                case Ended():
                    self._ended(event, arrived)
        self._maybe_interim()
        self._maybe_gap()

    async def finalize(self, arrived: float) -> None:
        """Send a final result for all audio so far at once, even if there is none."""
        events = self._segmenter.flush()
        for event in events:
            if isinstance(event, Ended):
                self._ended(event, arrived, finalized=True)
        if not events:
            await self._send(
                self._result(Recognition("", 0.0, ()), 0.0, final=True, finalized=True)
            )

    async def close(self, arrived: float) -> None:
        """Send the results that are due, then Metadata, then the close frame."""
        for event in self._segmenter.flush():
            if isinstance(event, Ended):
                self._ended(event, arrived)
        self._results.put_nowait(None)
        await self._answering
        if self._silent:
            return
        await self._send(
            {
                "type": "Metadata",
                "request_id": self._request_id,
                "duration": self._segmenter.now_ms / 1000,
                "channels": 1,
            }
        )
        await self._socket.close()

    @property
    def owes_result(self) -> bool:
        """True while speech is being recognised, or its result waits for its deadline."""
        return self._guess is not None or self._owed > 0

    def stop(self) -> None:
        """Cancel the tasks of this stream."""
        for task in self._running:
            task.cancel()

    @property
    def _settings(self) -> Deepgram:
        return self._context.control.deepgram  # not cached: delays change mid-call

    # --- from events to results

    async def _started(self, event: Started) -> None:
        self._utterance += 1
        self._interim_at_ms = event.at_ms
        self._gap_from_ms = None
        self._context.record.add("deepgram", "speech_started", at_ms=event.at_ms)
        if self._query.vad_events:
            timestamp = round(event.at_ms / 1000, 3)
            await self._send({"type": "SpeechStarted", "channel": [0], "timestamp": timestamp})

    def _ended(self, event: Ended, arrived: float, *, finalized: bool = False) -> None:
        if not (event.paused and self._guess is not None):
            self._forget_guess()
            self._guess = self._recognize(event.audio)
        recognition, self._guess = self._guess, None
        self._utterance += 1  # a late interim result of the old one is dropped
        self._gap_from_ms = event.speech_end_ms
        self._owed += 1
        self._results.put_nowait(
            _Utterance(
                recognition,
                event.from_ms,
                event.speech_end_ms,
                arrived + self._settings.final_delay_ms / 1000,
                self._query.endpointing_ms is not None,
                finalized,
            )
        )

    def _maybe_interim(self) -> None:
        every_ms = self._settings.interim_every_ms
        if not (self._query.interim_results and every_ms and self._segmenter.speaking):
            return
        due = self._segmenter.now_ms - self._interim_at_ms >= every_ms
        if due and (self._interim is None or self._interim.done()):
            self._interim_at_ms = self._segmenter.now_ms
            audio, from_ms = self._segmenter.so_far()
            self._interim = self._start(self._send_interim(audio, from_ms, self._utterance))

    def _maybe_gap(self) -> None:
        wanted_ms = self._query.utterance_end_ms
        if wanted_ms is None or self._gap_from_ms is None:
            return
        if self._segmenter.now_ms - self._gap_from_ms >= wanted_ms:
            self._results.put_nowait(_Gap(self._gap_from_ms))
            self._gap_from_ms = None

    def _recognize(self, audio: Pcm) -> asyncio.Task[Recognition | None]:
        return self._start(self._hear_phrase(audio, partial=False))

    async def _hear_phrase(self, audio: Pcm, *, partial: bool) -> Recognition | None:
        """Return None if the recogniser's process died, or is too busy for a partial result."""
        ear, rate = self._context.ear, self._query.sample_rate
        try:
            if partial:
                return await ear.recognize_if_idle(audio, rate)
            return await ear.recognize(audio, rate)
        except BrokenExecutor:
            self._context.record.add("deepgram", "recognizer_died")
            return None

    def _forget_guess(self) -> None:
        if self._guess is not None:
            self._guess.cancel()
            self._guess = None

    # --- sending

    async def _send_interim(self, audio: Pcm, from_ms: float, utterance: int) -> None:
        heard = await self._hear_phrase(audio, partial=True)
        if heard is not None and heard.text and utterance == self._utterance:
            await self._send(self._result(heard, from_ms, final=False))

    async def _answer(self) -> None:
        """Send finals and UtteranceEnds, in the order of the audio."""
        while (item := await self._results.get()) is not None:
            if isinstance(item, _Gap):
                last_word_end = round(item.last_word_end_ms / 1000, 3)
                await self._send(
                    {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": last_word_end}
                )
            else:
                await self._send_final(item)
                self._owed -= 1

    async def _send_final(self, item: _Utterance) -> None:
        heard = await item.recognition
        if heard is None:
            # The process that replaces it serves the next connection.
            await self._socket.close(code=aiohttp.WSCloseCode.INTERNAL_ERROR, message=b"NET-0000")
            return
        late_ms = await until(item.due)
        self._context.record.add(
            "deepgram",
            "final",
            request_id=self._request_id,
            text=heard.text,
            confidence=heard.confidence,
            speech_end_ms=item.speech_end_ms,
            late_ms=late_ms,
        )
        fault = self._context.take_fault("deepgram", before_answer=False, model=self._query.model)
        if fault is None:
            await self._send(
                self._result(
                    heard,
                    item.from_ms,
                    final=True,
                    endpoint=item.endpoint,
                    finalized=item.finalized,
                )
            )
        elif fault.kind == "malformed":
            await self._socket.send_str('{"type":"Results","channel":{')
        elif fault.kind == "drop":
            cut(self._request)
        else:
            self._silent = True

    async def _send(self, message: dict[str, Any]) -> None:
        if not self._silent:
            await self._socket.send_json(message)

    def _result(
        self,
        heard: Recognition,
        from_ms: float,
        *,
        final: bool,
        endpoint: bool = True,
        finalized: bool = False,
    ) -> dict[str, Any]:
        written = _written_words(heard)
        words = [
            {
                "word": word.word,
                "start": round((from_ms + word.start_ms) / 1000, 3),
                "end": round((from_ms + word.end_ms) / 1000, 3),
                "confidence": word.confidence,
                **({"punctuated_word": form} if self._query.punctuate else {}),
            }
            for word, form in zip(heard.words, written, strict=True)
        ]
        transcript = heard.text if self._query.punctuate else " ".join(w.word for w in heard.words)
        length_ms = heard.words[-1].end_ms if heard.words else 0.0
        return {
            "type": "Results",
            "channel_index": [0, 1],
            "start": round(from_ms / 1000, 3),
            "duration": round(length_ms / 1000, 3),
            "is_final": final,
            "speech_final": final and endpoint,
            "from_finalize": finalized,
            "channel": {
                "alternatives": [
                    {"transcript": transcript, "confidence": heard.confidence, "words": words}
                ]
            },
            "metadata": {"request_id": self._request_id, "model_info": {"name": self._query.model}},
        }

    def _start(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = self._tasks.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def _written_words(heard: Recognition) -> list[str]:
    """Return each spoken word as the text spells it; a number stays as its spoken words."""
    written: list[str] = []
    for token in heard.text.split():
        spoken = spoken_words(token)
        written += [token] if len(spoken) == 1 else spoken
    if len(written) != len(heard.words):
        return [word.word for word in heard.words]
    return written
