"""A chain of STTs. When one fails, livekit-agents' adapter loses the audio that it had received.
This chain keeps audio until it is transcribed, and passes it to the next STT.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from livekit import rtc
from livekit.agents import (
    NOT_GIVEN,
    APIConnectionError,
    APIConnectOptions,
    APIError,
    NotGivenOr,
    stt,
    utils,
)

from core.tasks.first_of import first_of
from worker.voice.fallback import ATTEMPT_S, STT_OPTIONS, Named, Post, describe, switched

UNDERSTOOD_WITHIN_S = 3.0
"""How long after speech a transcript is expected."""
_KEPT_S = 20.0  # longer than a caller speaks without a pause
# Speech of this length has words; a cough or a slammed door is shorter.
_WORDS_S = 0.8
# A connection may break during a call without a lasting fault, so a failed part is tried again.
_DOWN_FOR_S = 30.0
_ONCE = APIConnectOptions(max_retry=0, timeout=ATTEMPT_S)


@dataclass(slots=True)
class _Health:
    """The consecutive failures of one part."""

    failures: int = 0
    failed_at: float = 0.0
    refuses: bool = False
    """The error is permanent, such as a wrong key."""

    def failed(self, error: APIError, served_s: float) -> None:
        moment = time.monotonic()
        if served_s > STT_OPTIONS.timeout or moment - self.failed_at > _DOWN_FOR_S:
            self.failures = 0
        self.failures += 1
        self.failed_at = moment
        self.refuses = not error.retryable

    @property
    def down(self) -> bool:
        return self.failures > 0 and time.monotonic() - self.failed_at < _DOWN_FOR_S

    @property
    def worth_another(self) -> bool:
        """True if a single STT would be retried now."""
        return not self.refuses and self.failures <= STT_OPTIONS.max_retry

    @property
    def again_in_s(self) -> float:
        return max(0.0, self.failed_at + STT_OPTIONS.retry_interval - time.monotonic())


class SttChain(stt.STT[Any]):
    """An STT that passes audio to one of its parts at a time.

    A failed part is not asked again for a while if another one serves. If none does, they are
    retried in turn, each as often as a single STT is. A part that returns no words for the caller's
    speech (``unheard``) is passed over. If the other parts return none either, it was not speech.
    """

    def __init__(self, parts: list[Named[stt.STT[Any]]]) -> None:
        engines = [part.engine for part in parts]
        super().__init__(
            capabilities=stt.STTCapabilities(
                streaming=True,
                interim_results=all(engine.capabilities.interim_results for engine in engines),
            )
        )
        self.stalled = asyncio.Event()
        self._parts = parts
        self._post: Post | None = None
        self._health = {part.name: _Health() for part in parts}
        self._current = 0
        self._passed_over = 0
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, post: Post) -> None:
        """Post failures and switches with ``post``."""
        self._post = post

    @property
    def current(self) -> Named[stt.STT[Any]]:
        return self._parts[self._current]

    @property
    def model(self) -> str:
        return self.current.engine.model

    @property
    def provider(self) -> str:
        return self.current.engine.provider

    def prewarm(self) -> None:
        self.current.engine.prewarm()

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = _ONCE,
    ) -> stt.RecognizeStream:
        return _SttStream(self, language)

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        raise NotImplementedError("a call is listened to as a stream")

    async def aclose(self) -> None:
        self._disarm()
        for part in self._parts:
            await part.engine.aclose()

    def unheard(self, spoken_s: float) -> None:
        """Note that the caller spoke for ``spoken_s``, by the VAD, and no words were returned."""
        if spoken_s >= _WORDS_S:
            self._passed_over = 0
            self.stalled.set()

    def understood(self) -> None:
        """Note that the current part has returned words."""
        self._health[self.current.name] = _Health()
        self._passed_over = 0
        self._disarm()

    def failed(self, error: APIError, served_s: float) -> float | None:
        """Switch after a failure of the current part, which served for ``served_s``.

        Return in how many seconds the new current part may be asked; None to give up.
        """
        self._health[self.current.name].failed(error, served_s)
        if self._go_on(describe(error)):
            return 0.0
        again = [part for part in self._parts_after() if self._health[part.name].worth_another]
        if not again:
            return None
        # The next in line of those with the fewest failures.
        chosen = min(again, key=lambda part: self._health[part.name].failures)
        self._take(chosen, describe(error))
        return self._health[chosen.name].again_in_s

    def pass_over(self) -> bool:
        """Switch to the next part for the same audio; return False if all have been asked."""
        self.stalled.clear()
        self._disarm()
        self._passed_over += 1
        serving = [part for part in self._parts if not self._health[part.name].down]
        if self._passed_over >= len(serving) or not self._go_on("no words"):
            return False
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(UNDERSTOOD_WITHIN_S, self.stalled.set)
        return True

    def _go_on(self, why: str) -> bool:
        """Switch to the next part that serves; return False if there is none."""
        for part in self._parts_after()[:-1]:
            if not self._health[part.name].down:
                self._take(part, why)
                return True
        return False

    def _parts_after(self) -> list[Named[stt.STT[Any]]]:
        """Return the parts in order, from the next one round to the current one."""
        return [*self._parts[self._current + 1 :], *self._parts[: self._current + 1]]

    def _take(self, part: Named[stt.STT[Any]], why: str) -> None:
        before = self.current.name
        self._current = self._parts.index(part)
        switched(self._post, "stt", before, part.name, why)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _SttStream(stt.RecognizeStream):
    """Feeds the current part. After a switch, the next one first gets the untranscribed audio."""

    def __init__(self, chain: SttChain, language: NotGivenOr[str]) -> None:
        super().__init__(stt=chain, conn_options=_ONCE)
        self._chain = chain
        self._language = language
        self._kept: deque[rtc.AudioFrame] = deque()
        self._kept_s = 0.0
        self._listener: stt.RecognizeStream | None = None

    async def _run(self) -> None:
        forwarding = asyncio.create_task(self._forward(), name="stt chain")
        try:
            while not await self._listen():
                pass
        finally:
            await utils.aio.cancel_and_wait(forwarding)

    async def _forward(self) -> None:
        async for data in self._input_ch:
            if isinstance(data, rtc.AudioFrame):
                self._keep(data)
                self._give(partial(_push, frame=data))
            else:
                self._give(lambda listener: listener.flush())
        self._give(lambda listener: listener.end_input())

    def _give(self, to: Callable[[stt.RecognizeStream], None]) -> None:
        if self._listener is not None:
            # It may just have failed; the next part gets the kept audio.
            with contextlib.suppress(RuntimeError):
                to(self._listener)

    def _keep(self, frame: rtc.AudioFrame) -> None:
        self._kept.append(frame)
        self._kept_s += frame.duration
        while self._kept_s > _KEPT_S:
            self._kept_s -= self._kept.popleft().duration

    def _forget(self) -> None:
        self._kept.clear()
        self._kept_s = 0.0

    async def _listen(self) -> bool:
        """Listen until the current part fails (return False) or the call is over (return True).

        Raises the last part's APIError when the chain gives up.
        """
        chain = self._chain
        began = time.monotonic()
        listener = chain.current.engine.stream(language=self._language, conn_options=_ONCE)
        # Its timestamps count from the start of the audio that it gets.
        listener.start_time_offset = max(
            0.0, self.start_time_offset + time.time() - self.start_time - self._kept_s
        )
        for frame in self._kept:
            listener.push_frame(frame)
        if self._input_ch.closed:
            listener.end_input()
        self._listener = listener
        chain.stalled.clear()
        reading = asyncio.create_task(self._read(listener), name="stt")
        try:
            while not reading.done():
                await first_of(reading, chain.stalled.wait())
                if not reading.done():
                    if chain.pass_over():
                        return False
                    self._forget()
            await reading
            if not self._input_ch.closed:
                raise APIConnectionError("the provider stopped listening")
            return True
        except APIError as error:
            wait_s = chain.failed(error, time.monotonic() - began)
            if wait_s is None:
                raise
        finally:
            self._listener = None
            await utils.aio.cancel_and_wait(reading)
            await listener.aclose()
        await asyncio.sleep(wait_s)
        return False

    async def _read(self, listener: stt.RecognizeStream) -> None:
        async for event in listener:
            if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT and event.alternatives[0].text:
                self._forget()
                self._chain.understood()
            self._event_ch.send_nowait(event)


def _push(listener: stt.RecognizeStream, frame: rtc.AudioFrame) -> None:
    listener.push_frame(frame)
